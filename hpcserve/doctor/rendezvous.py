"""The doctor's end of its probe job: nodes call in over TCP; where they cannot, their file is waited for.

The ways are tried in passing: from the node to here (its call), from here to the node, and from node to node.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from hpcserve.doctor.host import HostReport

_MAX_LINE = 1 << 20
_CONNECT_TIMEOUT_S = 5.0
_HELLO_TIMEOUT_S = 10.0
_PEERS_TIMEOUT_S = 60.0
_POLL_S = 0.3


@dataclass(kw_only=True)
class Visit:
    """What one node said, and how it could be reached."""

    report: HostReport
    skew_s: float | None = None  # its clock less ours; None: it could not call
    back_error: str | None = None  # why there is no way from here to it; empty: there is; None: not tried
    peer_errors: dict[str, str] = field(default_factory=dict)  # by node; empty: there is a way


class Rendezvous:
    """Waits for the nodes of one probe job."""

    def __init__(self, directory: Path, num_nodes: int) -> None:
        self.token = secrets.token_hex(16)
        self._directory = directory
        self._num_nodes = num_nodes
        self._visits: dict[str, Visit] = {}
        self._all_here = asyncio.Event()
        self._done = asyncio.Event()
        self._num_done = 0
        self._server: asyncio.Server | None = None

    async def open(self, host: str) -> int:
        """Listen on an address of this host; return the port."""
        self._server = await asyncio.start_server(self._receive, host, 0, limit=_MAX_LINE)
        return int(self._server.sockets[0].getsockname()[1])

    async def wait(self, has_ended: asyncio.Event) -> list[Visit]:
        """Return what the nodes said: when all have, or a little after the job has ended."""
        while len(self._visits) < self._num_nodes and not has_ended.is_set():
            self._read_files()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._all_here.wait(), _POLL_S)
        self._read_files()
        self._all_here.set()
        if any(visit.skew_s is not None for visit in self._visits.values()):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._done.wait(), _PEERS_TIMEOUT_S)
        return [self._visits[node] for node in sorted(self._visits)]

    async def close(self) -> None:
        """Stop listening; calls under way end."""
        self._all_here.set()
        self._done.set()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_HELLO_TIMEOUT_S):
                hello = json.loads(await reader.readline())
            if hmac.compare_digest(str(hello.get("token")), self.token):
                await self._visit(hello, reader, writer)
        except (OSError, ValueError, AttributeError, KeyError, TimeoutError, msgspec.ValidationError):
            pass  # somebody else's call, or one that broke: its node is missing in the end
        finally:
            writer.close()

    async def _visit(
        self, hello: dict[str, object], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        skew_s = float(str(hello["now"])) - time.time()
        visit = Visit(report=msgspec.convert(hello["report"], HostReport), skew_s=skew_s)
        visit.back_error = await _try(visit.report.address, visit.report.port)
        self._visits[visit.report.node] = visit
        self._look_whether_all_are_here()
        await self._all_here.wait()
        others = [each.report for each in self._visits.values() if each is not visit and each.report.port]
        _say(writer, [[each.node, each.address, each.port] for each in others])
        async with asyncio.timeout(_PEERS_TIMEOUT_S):
            visit.peer_errors = dict(json.loads(await reader.readline())["peers"])
        self._num_done += 1
        if self._num_done >= sum(each.skew_s is not None for each in self._visits.values()):
            self._done.set()
        await self._done.wait()

    def _read_files(self) -> None:
        for path in self._directory.glob("*.json"):
            with suppress(OSError, msgspec.MsgspecError):
                report = msgspec.json.decode(path.read_bytes(), type=HostReport)
                self._visits.setdefault(report.node, Visit(report=report))
        self._look_whether_all_are_here()

    def _look_whether_all_are_here(self) -> None:
        if len(self._visits) >= self._num_nodes:
            self._all_here.set()


def _say(writer: asyncio.StreamWriter, what: object) -> None:
    writer.write(json.dumps(what).encode() + b"\n")


async def _try(host: str, port: int) -> str:
    """Return why there is no way to a port; empty where there is one."""
    try:
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError) as err:
        return getattr(err, "strerror", None) or "no answer"
    writer.close()
    return ""
