"""One end of a transport under test, in a process of its own: does what the test tells it over a Unix socket.

`python -m tests.contract.kv_side KIND SOCKET`, started by `kv_sides`, for MPI through mpirun. JSON lines in and out.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import socket
import sys
import time
import zlib
from base64 import b64decode, b64encode
from typing import Any

import numpy as np

from hpcserve.kv.transport import Copy, KVTransport, Region


def open_end(kind: str, timeout_s: float) -> KVTransport:
    if kind == "courier":
        from hpcserve.kv.courier import CourierTransport

        return CourierTransport(os.environ["COURIER_SOCKET"], timeout_s=timeout_s)
    from hpcserve.kv.factory import open_transport

    return open_transport(kind, timeout_s=timeout_s)  # type: ignore[arg-type]


class Side:
    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._finished: dict[int, str | None] = {}
        self._notes: list[bytes] = []

    def open(self, sizes: list[int], seed: int, timeout_s: float) -> str:
        rng = np.random.default_rng(seed)
        self._memory = [rng.integers(0, 256, size, dtype=np.uint8) for size in sizes]
        self._transport = open_end(self._kind, timeout_s)
        self._transport.register([Region(each.ctypes.data, each.size) for each in self._memory])
        return b64encode(self._transport.describe()).decode()

    def abilities(self) -> dict[str, Any]:
        abilities = self._transport.abilities
        return {"kind": self._transport.kind, "path": abilities.path, "warnings": list(abilities.warnings)}

    def fill(self, region: int, value: int) -> None:
        self._memory[region][:] = value

    def sums(self, ranges: list[tuple[int, int, int]]) -> list[int]:
        return [zlib.crc32(self._memory[region][offset : offset + size]) for region, offset, size in ranges]

    def pull(self, peer: str, copies: list[list[int]], note: str = "") -> int:
        return self._transport.pull(b64decode(peer), [Copy(*copy) for copy in copies], note=note.encode())

    def pull_then_cancel(self, peer: str, copies: list[list[int]], note: str, after_s: float) -> int:
        pull = self.pull(peer, copies, note)
        time.sleep(after_s)
        self._transport.cancel(pull)
        return pull

    def cancel(self, pull: int) -> None:
        self._transport.cancel(pull)

    def notify(self, peer: str, note: str) -> None:
        self._transport.notify(b64decode(peer), note.encode())

    def wait(self, pulls: list[int], timeout_s: float) -> list[Any]:
        """Errors of the pulls, "pending" of those that are not over; and the seconds it took."""
        started = time.monotonic()
        while time.monotonic() - started < timeout_s and not all(pull in self._finished for pull in pulls):
            self._look()
            time.sleep(100e-6)
        return [[self._finished.pop(pull, "pending") for pull in pulls], time.monotonic() - started]

    def hear(self, num: int, timeout_s: float) -> list[str]:
        """Notes since the last call: waits until there are `num`, and then a moment for one too many."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and len(self._notes) < num:
            self._look()
            time.sleep(1e-3)
        settled = time.monotonic() + 0.05
        while time.monotonic() < settled:
            self._look()
        notes, self._notes = self._notes, []
        return [note.decode() for note in notes]

    def cpu(self, duration_s: float) -> float:
        """Share of a core that this idle process takes."""
        used = time.process_time()
        time.sleep(duration_s)
        return (time.process_time() - used) / duration_s

    def close(self) -> None:
        self._transport.close()
        self._transport.close()

    def _look(self) -> None:
        finished, notes = self._transport.poll()
        self._finished |= {each.pull: each.error for each in finished}
        self._notes += notes


def main() -> None:
    faulthandler.enable()
    logging.basicConfig(format="%(process)d %(message)s", level=logging.WARNING)
    kind, address = sys.argv[1:]
    if kind == "mpi":
        from hpcserve.kv.mpi_world import join_world

        join_world()
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    told, answers = connection.makefile("r"), connection.makefile("w")
    rank = int(os.environ.get("OMPI_COMM_WORLD_RANK", "0"))
    hello = {"pid": os.getpid(), "rank": rank, "courier": os.environ.get("COURIER_SOCKET", "")}
    print(json.dumps(hello), file=answers, flush=True)
    side = Side(kind)
    for line in told:
        op, arguments = json.loads(line)
        if op == "end":
            break
        try:
            answer = {"value": getattr(side, op)(**arguments)}
        except Exception as err:
            answer = {"error": f"{type(err).__name__}: {err}"}
        print(json.dumps(answer), file=answers, flush=True)
    logging.shutdown()
    sys.stderr.flush()
    os._exit(0)  # MPI's own end waits for all ranks, and some are dead by now


if __name__ == "__main__":
    main()
