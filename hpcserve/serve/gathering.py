"""The first seconds of a head that takes over: agents come back, and only then are frontends let in.

What frontends know of an earlier head is of more use to them than a successor's word that nobody is READY yet, and the
first requests are placed with all workers, loads and caches known.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Collection
from contextlib import suppress

from hpcserve.cluster import Cluster, JobState
from hpcserve.head.reconciler import Reconciler
from hpcserve.head.roster import Roster
from hpcserve.records import JobRecord
from hpcserve.types import WorkerId

log = logging.getLogger(__name__)

_GATHER_S = 10.0  # an agent that lives tries every second; frontends wait for longer than this


class Gathering:
    """Waits for the agents of adopted jobs that run."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._changed = asyncio.Event()

    def note(self) -> None:
        """A worker has changed."""
        self._changed.set()

    async def wait(self, workers: Collection[WorkerId]) -> None:
        """Return when all of them are heard, or when some are late."""
        started = time.monotonic()
        with suppress(TimeoutError):
            async with asyncio.timeout(_GATHER_S):
                while self._missing(workers):
                    self._changed.clear()
                    await self._changed.wait()
        missing, took_s = self._missing(workers), time.monotonic() - started
        log.info("%d workers are back after %.1f s", len(workers) - len(missing), took_s)
        if missing:
            log.warning("not back yet: %s", ", ".join(missing))

    def _missing(self, workers: Collection[WorkerId]) -> list[WorkerId]:
        return [each for each in workers if self._roster.dask_address(each) is None and not self._is_over(each)]

    def _is_over(self, worker: WorkerId) -> bool:
        info = self._roster.get(worker)
        return info is None or info.state.is_final


async def adopt_jobs(
    cluster: Cluster | None, reconciler: Reconciler, records: Collection[JobRecord], *, is_planned: bool
) -> list[WorkerId]:
    """Hand over the jobs of an earlier head; return the workers of those that run, or may run.

    `cluster` None: it does not answer. Where a planner sizes the pools (`is_planned`) they keep the sizes they had.
    """
    if not records:
        return []
    if is_planned:
        slots = {(each.pool, each.index) for each in records}
        reconciler.resize(Counter(pool for pool, _ in slots))
    reconciler.adopt(records)
    if cluster is None:
        return [each.worker for each in records]
    views = await cluster.observe()
    return [each.worker for each in records if views[each.job_id].state is JobState.RUNNING]
