"""Keeps the frontend processes of a deployment running: those that it starts, and those that an earlier head left."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import time
from contextlib import closing, nullcontext, suppress

from hpcserve.comm.protocol import FrontendInfo
from hpcserve.config.models import FrontendConfig
from hpcserve.errors import DeploymentError, StartError
from hpcserve.observability.log_files import tail
from hpcserve.records import FrontendRecord, Proc
from hpcserve.serve.listening import check_port, reserve_port
from hpcserve.serve.processes import end_process, open_log
from hpcserve.state import StateDir

log = logging.getLogger(__name__)

_STEADY_S = 30.0
_MAX_FAILURES = 3  # in a row, each within _STEADY_S of its start
_STOP_GRACE_S = 10.0
_LOOK_S = 0.25  # at processes that are no children of ours
_CONNECT_S = 40.0  # a frontend that lives and does not come for so long is taken for frozen


class FrontendKeeper:
    """Starts the frontends, and each again when it dies. It knows what those that are connected say of themselves."""

    def __init__(self, state: StateDir, frontend: FrontendConfig, host: str | None = None) -> None:
        """`host` is listened on in place of the configured one."""
        self._state = state
        self._frontend = frontend if host is None else frontend.model_copy(update={"host": host})
        self._is_moved = host is not None
        self._records: dict[int, FrontendRecord] = {}  # by index
        self._infos: dict[int, FrontendInfo] = {}  # by index; connected ones
        self._last_port: int | None = None  # of an earlier head's frontends, dead ones too

    @property
    def infos(self) -> list[FrontendInfo]:
        """Return the frontends that are connected, in order."""
        return [info for _, info in sorted(self._infos.items())]

    def adopt(self, records: list[FrontendRecord]) -> None:
        """Take over the frontends of an earlier head that still run on this host. Before `run`."""
        self._records = {
            each.index: each for each in records if each.proc.is_alive and each.index < self._frontend.processes
        }
        self._last_port = next((each.port for each in records if each.proc.is_local and each.port is not None), None)
        for record in self._records.values():
            log.info("%s goes on as pid %d", _name(record.index), record.proc.pid)

    def takes(self, info: FrontendInfo) -> bool:
        """Return whether a frontend that comes is ours: not one on a host that an earlier head had."""
        record = self._records.get(info.index)
        return record is not None and record.proc.pid == info.pid and info.host in ("", socket.gethostname())

    def take(self, info: FrontendInfo, is_there: bool) -> None:
        """Note that a frontend has connected, or has gone."""
        if is_there:
            self._infos[info.index] = info
        elif self._infos.get(info.index) == info:
            del self._infos[info.index]

    async def run(self) -> None:
        """Keep them running until cancelled. Raises `StartError` if one dies again and again, or there is no port."""
        port = self._reserve_port()
        with closing(port) if port is not None else nullcontext():
            number = None if port is None else int(port.getsockname()[1])
            loops = [asyncio.create_task(self._keep(index, number)) for index in range(self._frontend.processes)]
            try:
                await asyncio.gather(*loops)
            finally:
                for loop in loops:
                    loop.cancel()
                await asyncio.gather(*loops, return_exceptions=True)

    def _reserve_port(self) -> socket.socket | None:
        """Hold the port that clients know; where all its frontends are dead, somebody else may have it by now."""
        adopted = next((each.port for each in self._records.values()), None)
        if adopted is None and self._frontend.port == 0 and self._last_port is not None:
            with suppress(DeploymentError, StartError):
                check_port(self._frontend.host, self._last_port)
                return reserve_port(self._frontend, self._last_port)
        return reserve_port(self._frontend, adopted)

    async def stop(self) -> None:
        """End them: they stop listening, let their requests end, and are killed if they do not end."""
        await asyncio.gather(*(end_process(each.proc, grace_s=_STOP_GRACE_S) for each in self._records.values()))
        self._records.clear()

    async def _keep(self, index: int, port: int | None) -> None:
        if (record := self._records.get(index)) is not None:
            await self._follow(record)
        num_failures = 0
        while num_failures < _MAX_FAILURES:
            started = time.monotonic()
            exit_code = await self._run_once(index, port)
            steady = time.monotonic() - started > _STEADY_S
            num_failures = 1 if steady else num_failures + 1
            log.error("%s ended with exit code %d", _name(index), exit_code)
        lines = "\n".join(tail(self._state.logs / f"{_name(index)}.log", 5))
        raise StartError(f"the frontend cannot be started; last lines of its log:\n{lines}")

    async def _follow(self, record: FrontendRecord) -> None:
        """Return when an adopted frontend is gone; one that never comes is ended."""
        proc, adopted_at, has_come = record.proc, time.monotonic(), False
        while proc.is_alive:
            has_come = has_come or record.index in self._infos
            if not has_come and time.monotonic() - adopted_at > _CONNECT_S:
                log.error("%s (pid %d) does not come back", _name(record.index), proc.pid)
                await end_process(proc, grace_s=_STOP_GRACE_S)
            await asyncio.sleep(_LOOK_S)
        log.error("%s (pid %d) ended", _name(record.index), proc.pid)

    async def _run_once(self, index: int, port: int | None) -> int:
        command = ["-m", "hpcserve.serve.frontend", "--state-dir", str(self._state.path), "--index", str(index)]
        if port is not None:
            command += ["--shared-port", str(port)]
        if self._is_moved:
            command += ["--host", self._frontend.host]
        with open_log(self._state.logs / f"{_name(index)}.log") as file:
            child = await asyncio.create_subprocess_exec(
                sys.executable,
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        with suppress(ProcessLookupError):  # it has ended already
            self._records[index] = FrontendRecord(proc=Proc.of(child.pid), index=index, port=port)
            self._state.write_frontends(list(self._records.values()))
        return await child.wait()


def _name(index: int) -> str:
    return f"frontend-{index}" if index else "frontend"
