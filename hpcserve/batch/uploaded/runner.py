"""Runs the batches of a deployment: checks each as it comes, runs some at once, deletes what has expired.

What there is to do it finds in the store, so it may be killed and started again. It starts no engine, and knows of the
deployment what `find_target` tells: where its endpoint is.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from hpcserve.batch.uploaded.job import Job, Target
from hpcserve.config.service_models import BatchesConfig
from hpcserve.errors import ConfigError, DeploymentError, HpcserveError, NotFound
from hpcserve.jobs import BatchError, BatchRecord, JobStore
from hpcserve.keys import OWNER, KeyFile, KeyRecord

log = logging.getLogger(__name__)

_LOOK_S = 0.5
_SWEEP_S = 300.0
_RETRY_S = 2.0


class BatchRunner:
    """One process's. `run` is the whole life."""

    def __init__(
        self,
        store: JobStore,
        config: BatchesConfig,
        find_target: Callable[[], Awaitable[Target]],
        keys: KeyFile | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`find_target` raises `DeploymentError` while nothing is served. Without `keys` nobody has any."""
        self._store = store
        self._config = config
        self._find_target = find_target
        self._keys = keys
        self._clock = clock
        self._tasks: dict[str, asyncio.Task[None]] = {}  # by batch
        self._running: dict[str, str] = {}  # batches that have a slot, with their tenants
        self._checking = asyncio.Semaphore(1)
        self._swept = 0.0

    async def run(self, idle_s: float | None = None) -> None:
        """Run batches until cancelled, or until there was nothing to do for `idle_s`."""
        busy_at = time.monotonic()
        try:
            while idle_s is None or time.monotonic() - busy_at < idle_s:
                if await self._look():
                    busy_at = time.monotonic()
                await asyncio.sleep(_LOOK_S)
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _look(self) -> bool:
        """Start what is new; return whether there is work."""
        try:
            unfinished = await asyncio.to_thread(self._store.batches.unfinished)
            if time.monotonic() - self._swept > _SWEEP_S or not self._swept:
                self._swept = time.monotonic()
                await asyncio.to_thread(self._store.sweep, self._clock())
        except HpcserveError as err:
            log.error("cannot look for batches: %s", err.message)
            return True
        self._give_slots(unfinished)
        for record in unfinished:
            if record.id not in self._tasks:
                task = self._tasks[record.id] = asyncio.create_task(self._live(record), name=record.id)
                task.add_done_callback(self._forget)
        return bool(unfinished)

    def _give_slots(self, unfinished: list[BatchRecord]) -> None:
        """Let the next ones run: of the tenant that has fewest running, whichever came first."""
        ready = [each for each in unfinished if each.is_checked and each.status in ("validating", "in_progress")]
        waiting = [each for each in ready if each.id not in self._running]
        while waiting and len(self._running) < self._config.max_active:
            tenants = list(self._running.values())
            chosen = min(waiting, key=lambda each: tenants.count(each.tenant))
            waiting.remove(chosen)
            self._running[chosen.id] = chosen.tenant

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task.get_name(), None)
        self._running.pop(task.get_name(), None)

    async def _live(self, record: BatchRecord) -> None:
        """Take a batch to its end, however often the endpoint goes away meanwhile."""
        job = Job(record, self._store, self._config, self._clock)
        log.info("%s of %s: %s", record.id, record.tenant, record.status)
        while not job.record.is_final:
            try:
                await self._step(job)
            except DeploymentError as err:
                log.warning("%s waits: %s", record.id, err.message)
                await asyncio.sleep(_RETRY_S)
            except ConfigError as err:
                await job.fail([BatchError(code="results_changed", message=err.message)])
            except NotFound as err:
                await job.fail([BatchError(code="not_found", message=err.message)])
            except HpcserveError as err:
                log.error("%s: %s", record.id, err.message)
                await asyncio.sleep(_RETRY_S)
            except Exception as err:
                log.exception("%s failed in a way that nobody foresaw", record.id)
                await job.fail([BatchError(code="internal_error", message=f"internal error: {err!r}")])
        log.info("%s is %s", record.id, job.record.status)

    async def _step(self, job: Job) -> None:
        record = await job.reload()
        if record.status in ("cancelling", "finalizing"):
            await job.finish(is_complete=record.status == "finalizing")
        elif record.expires_at <= self._clock():
            await job.finish(is_complete=False)
        elif (key := await asyncio.to_thread(self._key_of, record.tenant)) is None and record.tenant != OWNER:
            await job.fail([BatchError(code="key_revoked", message="the key that this batch came with was revoked")])
        elif not record.is_checked:
            target = await self._find_target()
            async with self._checking:
                await job.check(target, None if key is None or key.models is None else frozenset(key.models))
        elif record.id in self._running:
            await job.run(await self._find_target())
        else:
            await asyncio.sleep(_LOOK_S)  # whoever waits may be cancelled meanwhile

    def _key_of(self, tenant: str) -> KeyRecord | None:
        records = self._keys.read() if self._keys is not None else ()
        return next((each for each in records if each.name == tenant), None)
