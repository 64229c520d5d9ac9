"""The agent's place in the Dask cluster: a Dask `Worker` that is built again whenever the scheduler went away.

distributed's worker closes for good when its scheduler is lost. The engine must not: so the worker is a part that this
loop replaces, at the address that the state directory then names.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from hpcserve.agent.units import Units
from hpcserve.comm.protocol import ANNOUNCE, COMMAND, PEERS, Announcement, Command
from hpcserve.comm.tls import security
from hpcserve.errors import ConnectionLost, HpcserveError
from hpcserve.named_head import next_head, other_head
from hpcserve.records import HeadRecord
from hpcserve.state import StateDir
from hpcserve.types import WorkerId, WorkerInfo

log = logging.getLogger(__name__)

_JOIN_TIMEOUT_S = 30.0
_RETRY_S = 0.5
_UNITS_AT_ONCE = 64  # Dask's threads: units are coroutines and take none

# What distributed would do by itself and an agent must not: sample stacks, serve pages to everybody, kill by memory,
# look at its clock 50 times a second (1 % of a core).
DASK_CONFIG = {
    "distributed.worker.profile.enabled": False,
    "distributed.worker.http.routes": [],
    "distributed.worker.lifetime.duration": None,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.low-level-log-length": 10,  # messages are kept whole, and have prompts
    "distributed.admin.system-monitor.interval": "5s",
    "distributed.admin.system-monitor.disk": False,
    "distributed.admin.system-monitor.gil.enabled": False,
    "distributed.admin.tick.limit": "30s",  # loading a model may hold the interpreter for seconds
    "distributed.comm.timeouts.connect": "10s",
}


class Membership:
    """Joins the scheduler, stays joined, and carries announcements up and commands down."""

    def __init__(
        self,
        worker: WorkerId,
        state: StateDir,
        *,
        host: str,
        scratch: Path,
        on_joined: Callable[[], Announcement],
        on_command: Callable[[Command], None],
        units: Units,
    ) -> None:
        self._worker_id = worker
        self._state = state
        self._host = host
        self._scratch = scratch
        self._on_joined = on_joined
        self._on_command = on_command
        self._units = units
        self._dask: Any = None
        self._joined = asyncio.Event()
        self.last_joined = time.monotonic()

    async def run(self) -> None:
        """Join again and again until cancelled."""
        while True:
            try:
                await self._stay_joined()
            except (OSError, TimeoutError, ValueError, RuntimeError, HpcserveError) as err:
                log.info("not joined to the head: %s", err)
            finally:
                await self._leave()
            await asyncio.sleep(_RETRY_S)

    def announce(self, announcement: Announcement) -> None:
        """Tell the head soon. Dropped while not joined: joining sends everything anew."""
        if self._dask is not None:
            self._dask.batched_send({"op": ANNOUNCE, "payload": msgspec.msgpack.encode(announcement)})

    async def announce_now(self, announcement: Announcement, *, timeout_s: float) -> None:
        """Join if need be, tell the head and wait until it heard, all within `timeout_s`; for last words."""
        with suppress(OSError, TimeoutError, ValueError):
            async with asyncio.timeout(timeout_s):
                await self._joined.wait()
                call = getattr(self._dask.scheduler, ANNOUNCE)
                await call(worker=self._dask.address, payload=msgspec.msgpack.encode(announcement))

    async def peers(self) -> tuple[WorkerInfo, ...]:
        """Wait for the head, and return all workers that it knows of, this one too. Raises `ConnectionLost`."""
        await self._joined.wait()
        try:
            async with asyncio.timeout(_JOIN_TIMEOUT_S):
                answer = await getattr(self._dask.scheduler, PEERS)()
        except (OSError, TimeoutError, ValueError, AttributeError) as err:
            raise ConnectionLost(f"the head does not say which workers there are: {err!r}") from err
        return msgspec.msgpack.decode(answer, type=tuple[WorkerInfo, ...])

    @property
    def is_joined(self) -> bool:
        """Whether the head hears us."""
        return self._dask is not None

    async def _stay_joined(self) -> None:
        from distributed import Worker

        from hpcserve.agent.unit_tasks import UnitPlugin

        head = self._state.read_head()
        if head is None:
            raise HpcserveError("the state directory names no head")
        worker = Worker(
            head.scheduler,
            name=self._worker_id,
            nthreads=_UNITS_AT_ONCE,
            memory_limit=0,
            host=self._host,
            local_directory=str(self._scratch),
            dashboard_address="127.0.0.1:0",
            security=security(self._state.tls_cert, self._state.tls_key),
        )
        worker.stream_handlers[COMMAND] = self._take_command
        await worker.plugin_add(UnitPlugin(self._units))
        try:
            await self._join(worker, head)
        except BaseException:
            await worker.close(nanny=False)
            raise
        self._dask = worker
        self._joined.set()
        log.info("joined %s", head.scheduler)
        self.announce(self._on_joined())
        await self._until_gone(worker, head)
        log.warning("the head at %s is gone", head.scheduler)

    async def _join(self, worker: Any, head: HeadRecord) -> None:
        """Start a Dask worker. Dask tries one that is not there at growing intervals: only while it is named.

        Raises as Dask does, `TimeoutError`, and `ConnectionLost` where another head is named meanwhile.
        """
        joining = asyncio.ensure_future(worker)
        succeeded = asyncio.create_task(next_head(self._state, head))
        try:
            async with asyncio.timeout(_JOIN_TIMEOUT_S):
                await asyncio.wait((joining, succeeded), return_when=asyncio.FIRST_COMPLETED)
            if not joining.done():
                raise ConnectionLost(f"the head at {head.scheduler} has a successor")
            joining.result()
        finally:
            for task in (joining, succeeded):
                task.cancel()
            await asyncio.gather(joining, succeeded, return_exceptions=True)

    async def _until_gone(self, worker: Any, head: HeadRecord) -> None:
        """Return when the head has gone, or has a successor elsewhere: a host that is lost closes no connection."""
        gone = asyncio.create_task(worker.finished())
        succeeded = asyncio.create_task(other_head(self._state, head))
        try:
            await asyncio.wait((gone, succeeded), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (gone, succeeded):
                task.cancel()
            await asyncio.gather(gone, succeeded, return_exceptions=True)

    async def _leave(self) -> None:
        worker, self._dask = self._dask, None
        self._joined.clear()
        if worker is not None:
            self.last_joined = time.monotonic()
            with suppress(OSError, TimeoutError):
                await worker.close(nanny=False)

    def _take_command(self, payload: bytes) -> None:
        try:
            self._on_command(msgspec.msgpack.decode(payload, type=Command))
        except Exception:  # an exception here would drop the Dask worker
            log.exception("a command of the head failed")
