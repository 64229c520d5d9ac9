"""Engines in the ranks of an MPI world, driven by the test: `started(...)`. Rank 0 is in the world and has no engine.

`python -m tests.contract.rank_engines SOCKET` is one rank, started through mpirun; it ends when the test hangs up.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from hpcserve.config import Config
from hpcserve.engine.protocol import EngineContext
from hpcserve.types import EngineInfo, KvEvent
from tests.contract import engine_process
from tests.contract.engine_process import RemoteEngine
from tests.contract.kv_sides import mpirun

_JOIN_TIMEOUT_S = 60.0
_END_TIMEOUT_S = 20.0


class RankEngine(RemoteEngine):
    """An engine in the process of a rank that has reported."""

    def __init__(self, connection: socket.socket, rank_pid: int, config: Config, context: EngineContext) -> None:
        super().__init__(config, context)
        self._connection, self._pid = connection, rank_pid

    @property
    def pid(self) -> int:
        return self._pid

    async def start(self, on_kv_events: Callable[[list[KvEvent]], None]) -> EngineInfo:
        self._on_kv_events = on_kv_events
        self._reader, self._writer = await asyncio.open_connection(sock=self._connection)
        self._listening = asyncio.create_task(self._listen())
        engine_process._send(self._writer, (self._config, self._context))
        return await self._call("start")

    async def stop(self) -> None:
        if not hasattr(self, "_listening") or self._listening.done():
            return
        self.signal(signal.SIGCONT)
        with suppress(ConnectionError, TimeoutError, asyncio.CancelledError):
            await asyncio.wait_for(self._call("stop"), _END_TIMEOUT_S)

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
        await asyncio.wait([self._listening])

    def signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._pid, number)

    async def hang_up(self) -> None:
        self._listening.cancel()
        await asyncio.gather(self._listening, return_exceptions=True)
        self._writer.close()


@asynccontextmanager
async def started(
    directory: Path, engines: Sequence[tuple[Config, EngineContext]], *, environ: dict[str, str] | None = None
) -> AsyncIterator[list[RankEngine]]:
    """Start the world and yield engines that are still to be started; end all, whatever happened."""
    address = str(directory / "ranks")
    made: list[RankEngine] = []
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen()
        listening.setblocking(False)
        process = await asyncio.create_subprocess_exec(
            *mpirun(len(engines) + 1),
            *(sys.executable, "-m", "tests.contract.rank_engines", address),
            stdin=asyncio.subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OMPI_MCA_orte_abort_on_non_zero_status": "0"} | (environ or {}),
            start_new_session=True,
        )
        leader: socket.socket | None = None
        try:
            async with asyncio.timeout(_JOIN_TIMEOUT_S):
                ranks = sorted([await _accept(listening) for _ in range(len(engines) + 1)])
            (_, _, leader), *others = ranks
            made = [RankEngine(each, pid, *engine) for (_, pid, each), engine in zip(others, engines, strict=True)]
            yield made
        finally:
            for engine in made:
                if hasattr(engine, "_listening"):
                    await engine.hang_up()
            if leader is not None:
                leader.close()
            await _end(process)


async def _accept(listening: socket.socket) -> tuple[int, int, socket.socket]:
    connection, _ = await asyncio.get_running_loop().sock_accept(listening)
    hello = await asyncio.get_running_loop().sock_recv(connection, 8)
    return *struct.unpack("!II", hello), connection


async def _end(process: asyncio.subprocess.Process) -> None:
    try:
        await asyncio.wait_for(process.wait(), _END_TIMEOUT_S)
    except TimeoutError:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _END_TIMEOUT_S)
        except TimeoutError:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


def main() -> None:
    from hpcserve.kv.mpi_world import join_world

    world = join_world()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(sys.argv[1])
        connection.sendall(struct.pack("!II", world.rank, os.getpid()))
        if world.rank == 0:
            connection.recv(1)  # nothing comes but the end
        else:
            asyncio.run(engine_process.serve(connection))
    sys.stderr.flush()
    os._exit(0)  # MPI's own end waits for all ranks, and some may be dead


if __name__ == "__main__":
    main()
