"""A program that looks at the host it runs on: `python -m hpcserve.doctor.probe ORDER`. Starts no engine.

With `--here` it prints its report as JSON and ends. Without, it is one rank of the doctor's job: it tells the doctor
over a connection, or, where there is no way, by a file beside the order (see `rendezvous.py`, the other end).
"""

from __future__ import annotations

import json
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import msgspec

from hpcserve.doctor.host import HostReport, ProbeOrder, look_around

_CONNECT_TIMEOUT_S = 5.0
_PEERS_TIMEOUT_S = 45.0  # the others look around, too


def main(arguments: list[str]) -> int:
    """Return the exit code."""
    path = Path(arguments[-1])
    order = msgspec.json.decode(path.read_bytes(), type=ProbeOrder)
    report = look_around(order)
    if "--here" in arguments:
        sys.stdout.write(msgspec.json.encode(report).decode())
        return 0
    _tell(order, report, path.parent)
    return 0


def _tell(order: ProbeOrder, report: HostReport, directory: Path) -> None:
    """Listen, call the doctor, try the other nodes, tell again. What is said is one JSON object a line."""
    with socket.socket() as listener:
        listener.bind((report.address or "", 0))
        listener.listen()
        report = msgspec.structs.replace(report, port=listener.getsockname()[1])
        try:
            doctor = socket.create_connection((order.host, order.port), timeout=_CONNECT_TIMEOUT_S)
        except OSError as err:
            where = f"{order.host}:{order.port}"
            _write(msgspec.structs.replace(report, doctor_error=f"{where}: {err.strerror or err}"), directory)
            return
        with doctor, suppress(OSError):
            _talk(doctor, order, report)


def _talk(doctor: socket.socket, order: ProbeOrder, report: HostReport) -> None:
    with doctor.makefile("rw", encoding="utf-8") as lines:
        _say(lines, {"token": order.token, "now": time.time(), "report": msgspec.to_builtins(report)})
        doctor.settimeout(_PEERS_TIMEOUT_S)
        peers = json.loads(lines.readline() or "[]")
        _say(lines, {"peers": {node: _try(host, port) for node, host, port in peers}})
        lines.readline()  # until all have tried: the listener stays until then


def _say(lines: TextIO, what: object) -> None:
    lines.write(json.dumps(what) + "\n")
    lines.flush()


def _try(host: str, port: int) -> str:
    """Return why there is no way to a port; empty where there is one."""
    try:
        socket.create_connection((host, port), timeout=_CONNECT_TIMEOUT_S).close()
    except OSError as err:
        return err.strerror or str(err)
    return ""


def _write(report: HostReport, directory: Path) -> None:
    part = directory / f"{report.node}.part"
    part.write_bytes(msgspec.json.encode(report))
    part.chmod(0o600)
    part.replace(directory / f"{report.node}.json")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
