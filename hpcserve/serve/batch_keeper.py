"""Keeps the batch runner of a deployment running, as a child of the head, while there are batches."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from contextlib import suppress

from hpcserve.config.models import Config
from hpcserve.errors import HpcserveError
from hpcserve.jobs import JobStore, jobs_directory
from hpcserve.records import Proc
from hpcserve.serve.processes import end_process, open_log
from hpcserve.state import StateDir

log = logging.getLogger(__name__)

_LOOK_S = 1.0
_SWEEP_S = 3600.0  # files expire whether there are batches or not
_STOP_GRACE_S = 10.0
_PAUSE_S = 5.0  # before it is started again


class BatchKeeper:
    """Looks for batches, and starts the runner where there are some; it ends by itself when there are none."""

    def __init__(self, config: Config, state: StateDir) -> None:
        self._config = config
        self._state = state
        self._proc: Proc | None = None

    async def run(self) -> None:
        """Look until cancelled. What cannot be looked for is logged, and looked for again."""
        if not self._config.batches.enabled:
            await asyncio.Event().wait()
        store: JobStore | None = None
        swept, complaint = 0.0, ""
        while True:
            try:
                if store is None:
                    store = await asyncio.to_thread(self._open)
                if time.monotonic() - swept > _SWEEP_S or not swept:
                    swept = time.monotonic()
                    await asyncio.to_thread(store.sweep, time.time())
                if await asyncio.to_thread(store.batches.has_unfinished):
                    await self._run_once()
                complaint = ""
            except HpcserveError as err:
                if err.message != complaint:
                    log.error("batches do not run: %s", err.message)
                complaint = err.message
            await asyncio.sleep(_LOOK_S)

    async def stop(self) -> None:
        """End the runner; what it has under way is gone on with at the next start."""
        if self._proc is not None:
            await end_process(self._proc, grace_s=_STOP_GRACE_S)
            self._proc = None

    def _open(self) -> JobStore:
        return JobStore(jobs_directory(self._config, self._state))

    async def _run_once(self) -> None:
        with open_log(self._state.logs / "batches.log") as file:
            child = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "hpcserve.serve.batch_runner",
                "--state-dir",
                str(self._state.path),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        with suppress(ProcessLookupError):
            self._proc = Proc.of(child.pid)
        exit_code = await child.wait()
        if exit_code:
            log.error("the batch runner ended with exit code %d", exit_code)
            await asyncio.sleep(_PAUSE_S)
