"""Keeps the frontend process of a deployment running, as a child of the head."""

from __future__ import annotations

import asyncio
import logging
import sys
import time

from hpcserve.comm.protocol import FrontendInfo
from hpcserve.errors import StartError
from hpcserve.observability.log_files import tail
from hpcserve.serve.processes import end_process, open_log
from hpcserve.state import Proc, StateDir

log = logging.getLogger(__name__)

_STEADY_S = 30.0
_MAX_FAILURES = 3  # in a row, each within _STEADY_S of its start
_STOP_GRACE_S = 10.0


class FrontendKeeper:
    """Starts the frontend, and starts it again when it dies. `info` is what it said of itself while it is connected."""

    def __init__(self, state: StateDir) -> None:
        self._state = state
        self._proc: Proc | None = None
        self.info: FrontendInfo | None = None

    async def run(self) -> None:
        """Keep it running until cancelled. Raises `StartError` if it dies again and again."""
        num_failures = 0
        while num_failures < _MAX_FAILURES:
            started = time.monotonic()
            exit_code = await self._run_once()
            steady = time.monotonic() - started > _STEADY_S
            num_failures = 1 if steady else num_failures + 1
            log.error("the frontend ended with exit code %d", exit_code)
        lines = "\n".join(tail(self._state.logs / "frontend.log", 5))
        raise StartError(f"the frontend cannot be started; last lines of its log:\n{lines}")

    async def stop(self) -> None:
        """End it: it stops listening, lets its requests end, and is killed if it does not."""
        if self._proc is not None:
            await end_process(self._proc, grace_s=_STOP_GRACE_S)
            self._proc = None

    async def _run_once(self) -> int:
        with open_log(self._state.logs / "frontend.log") as file:
            child = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "hpcserve.serve.frontend",
                "--state-dir",
                str(self._state.path),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self._proc = Proc.of(child.pid)
        self._state.write_frontend(self._proc)
        return await child.wait()
