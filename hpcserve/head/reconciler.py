"""Keeps the pools filled: what is wanted against what the cluster and the agents say; what died is launched again.

dask-jobqueue's own `scale` and `adapt` know one kind of worker and count dead jobs as alive (dask-jobqueue #691), so
the pools are ours: a slot for each wanted worker, one job a slot at a time.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from hpcserve.cluster.protocol import Cluster, JobState, JobView, WorkerSpec
from hpcserve.config.models import Config
from hpcserve.errors import ClusterError, StartError
from hpcserve.head.roster import Roster
from hpcserve.records import JobRecord
from hpcserve.state import StateDir
from hpcserve.types import Role, WorkerId, WorkerInfo, WorkerState

log = logging.getLogger(__name__)

_LOST_S = 10.0  # an agent that left the scheduler and did not come back for so long is taken for dead
_END_S = 45.0  # from an agent's last word, or our cancel, to the end of its job
_STEADY_S = 30.0  # READY for so long, a worker's end is not its fault
_MAX_BACKOFF_S = 60.0
_MAX_START_FAILURES = 2  # in a row, in a pool that never had a READY worker


@dataclass
class _Slot:
    """One wanted worker and the job that now holds it."""

    pool: str
    index: int
    job: JobRecord | None = None
    num_failures: int = 0  # in a row
    retry_at: float = 0.0
    ready_since: float | None = None  # of the present job
    last_failure: str = ""


class Reconciler:
    """Owns the jobs of a deployment. `run` acts until cancelled; `stop_all` ends every job."""

    def __init__(
        self,
        config: Config,
        cluster: Cluster,
        roster: Roster,
        state: StateDir,
        *,
        poll_s: float,
        idle_poll_s: float,
        tail: Callable[[WorkerId], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._config = config
        self._cluster = cluster
        self._roster = roster
        self._state = state
        self._poll_s = poll_s
        self._idle_poll_s = idle_poll_s
        self._tail = tail
        self._slots = [_Slot(pool, index) for pool, size in config.pools.sizes.items() for index in range(size)]
        self._worked: set[str] = set()  # pools that had a READY worker
        self._unwanted: list[str] = []  # jobs to be told to end
        self._ending: dict[str, tuple[JobRecord, float]] = {}  # jobs whose worker is over -> when to force them

    async def run(self) -> None:
        """Reconcile until cancelled. Raises `StartError` when a pool that never worked cannot be brought up."""
        while True:
            try:
                await self.step()
            except StartError:
                raise
            except Exception:  # a fault here must not end the engines; the next round looks at the world anew
                log.exception("reconciling failed")
            await self._pause()

    async def _pause(self) -> None:
        """Wait for the next look: a short while, or a long one for as long as nothing is under way.

        Slurm's controller serves everybody; it is not asked every second for the state of jobs whose agents we hear.
        """
        waited_s = 0.0
        while waited_s < (self._idle_poll_s if self._is_settled() else self._poll_s):
            await asyncio.sleep(self._poll_s)
            waited_s += self._poll_s

    def _is_settled(self) -> bool:
        return not self._ending and all(slot.job and self._is_well(slot.job.worker) for slot in self._slots)

    def _is_well(self, worker: WorkerId) -> bool:
        info = self._roster.get(worker)
        return info is not None and info.state is WorkerState.READY and not self._roster.is_lost(worker)

    async def step(self) -> None:
        """Compare once and act. The cluster's own failures are logged and tried again."""
        try:
            views = await self._cluster.observe()
        except ClusterError as err:
            log.warning("the cluster did not answer: %s", err.message)
            return
        for slot in self._slots:
            if slot.job is not None:
                self._judge(slot, slot.job, views.get(slot.job.job_id))
        if self._unwanted:
            await self._cluster.cancel(self._unwanted)
            self._unwanted.clear()
        await self._finish_ending(views)
        for slot in self._slots:
            if slot.job is None and self._clock() >= slot.retry_at:
                await self._launch(slot)

    def resize(self, sizes: Mapping[str, int]) -> None:
        """Want so many workers of each pool from now on; those above it are told to end, the youngest first."""
        for pool, size in sizes.items():
            held = [slot for slot in self._slots if slot.pool == pool]
            for slot in held[size:]:
                self._slots.remove(slot)
                if slot.job is not None:
                    self._ending[slot.job.job_id] = (slot.job, self._clock() + self._config.cluster.drain_timeout_s)
                    self._unwanted.append(slot.job.job_id)
            taken = {slot.index for slot in held}
            free = (index for index in itertools.count() if index not in taken)
            self._slots += [_Slot(pool, index) for index in itertools.islice(free, max(0, size - len(held)))]
        self._record()

    def adopt(self, records: Iterable[JobRecord]) -> None:
        """Take over the jobs that an earlier head left, before the first step. Slots that they fill launch nothing."""
        for record in records:
            self._cluster.adopt(record.job_id)
            slot = next((each for each in self._slots if (each.pool, each.index) == (record.pool, record.index)), None)
            self._roster.expect(
                WorkerInfo(worker=record.worker, pool=record.pool, role=record.role, state=WorkerState.PENDING)
            )
            if slot is not None and slot.job is None:
                slot.job = record
            else:
                self._ending[record.job_id] = (record, self._clock() + self._config.cluster.drain_timeout_s)
                self._unwanted.append(record.job_id)
        self._record()

    async def stop_all(self, *, force: bool) -> None:
        """End every job and return when none is left; what does not end by itself is killed."""
        jobs = [record.job_id for record in self._records()]
        if not jobs:
            return
        await self._cluster.cancel(jobs, force=force)
        try:
            await self._cluster.wait_gone(jobs, timeout_s=self._config.cluster.drain_timeout_s + 10)
        except ClusterError as err:
            log.warning("%s; forcing", err.message)
            await self._cluster.cancel(jobs, force=True)
            await self._cluster.wait_gone(jobs, timeout_s=60)
        for record in self._records():
            self._roster.end(record.worker, WorkerState.STOPPED, "")
        for slot in self._slots:
            slot.job = None
        self._ending.clear()
        self._record()

    def _judge(self, slot: _Slot, job: JobRecord, view: JobView | None) -> None:
        info = self._roster.get(job.worker)
        if info is None or view is None:
            return
        if view.state is JobState.GONE or info.state.is_final or info.state is WorkerState.DRAINING:
            self._ending[job.job_id] = (job, self._clock() + self._config.cluster.drain_timeout_s + _END_S)
            self._vacate(slot, job, info, info.detail or view.reason)
        elif self._roster.lost_for_s(job.worker) > _LOST_S:
            self._give_up(slot, job, info, "lost: the agent does not answer")
        elif view.state is JobState.PENDING:
            self._roster.update_job(job.worker, detail=view.reason)
        else:
            self._follow(slot, job, info, view)

    def _follow(self, slot: _Slot, job: JobRecord, info: WorkerInfo, view: JobView) -> None:
        """A job that runs: carry over what only the cluster knows, and bound the time to READY."""
        if info.state is WorkerState.PENDING:
            self._roster.update_job(job.worker, state=WorkerState.STARTING, detail="", host=view.host)
        self._roster.update_job(job.worker, ends_at=view.ends_at)
        if info.state is WorkerState.READY:
            self._worked.add(slot.pool)
            slot.ready_since = slot.ready_since or self._clock()
        elif view.started_at is not None and info.state is not WorkerState.DRAINING:
            waited = time.time() - view.started_at
            if waited > self._config.cluster.start_timeout_s:
                self._give_up(slot, job, info, f"not READY {waited:.0f} s after its job started")

    def _give_up(self, slot: _Slot, job: JobRecord, info: WorkerInfo, reason: str) -> None:
        self._roster.end(job.worker, WorkerState.FAILED, reason)
        self._ending[job.job_id] = (job, 0.0)
        self._vacate(slot, job, info, reason)

    def _vacate(self, slot: _Slot, job: JobRecord, info: WorkerInfo, reason: str) -> None:
        """The slot's worker takes nothing new: note when the next may be launched."""
        was_stopped = info.state in (WorkerState.STOPPED, WorkerState.DRAINING)
        ready_since, slot.job, slot.ready_since = slot.ready_since, None, None
        if was_stopped or (ready_since is not None and self._clock() - ready_since > _STEADY_S):
            slot.num_failures = 0
            return
        slot.num_failures += 1
        slot.last_failure = reason
        slot.retry_at = self._clock() + min(_MAX_BACKOFF_S, 2.0**slot.num_failures)
        log.warning("%s failed (%d in a row): %s", job.worker, slot.num_failures, reason)
        self._refuse_hopeless(slot, job.worker)

    def _refuse_hopeless(self, slot: _Slot, worker: WorkerId) -> None:
        if slot.pool not in self._worked and slot.num_failures >= _MAX_START_FAILURES:
            tail = self._tail(worker)
            raise StartError(
                f"pool {slot.pool!r} cannot be started: {worker} failed: {slot.last_failure}"
                + (f"\nlast lines of its log:\n{tail}" if tail else "")
            )

    async def _finish_ending(self, views: dict[str, JobView]) -> None:
        """See to it that jobs whose worker is over end as well."""
        now = self._clock()
        for job_id, (job, force_at) in list(self._ending.items()):
            view = views.get(job_id)
            if view is None or view.state is JobState.GONE:
                # Slurm calls a job gone while its agent still drains; the agent's word counts as long as it is heard.
                if self._roster.dask_address(job.worker) is None or now >= force_at:
                    self._bury(job, view)
            elif now >= force_at:
                await self._cluster.cancel([job_id], force=True)

    def _bury(self, job: JobRecord, view: JobView | None) -> None:
        info = self._roster.get(job.worker)
        if info is not None and info.state is WorkerState.DRAINING:
            self._roster.end(job.worker, WorkerState.STOPPED, "")
        else:
            self._roster.end(job.worker, WorkerState.FAILED, (view and view.reason) or "its job ended")
        del self._ending[job.job_id]
        self._record()

    async def _launch(self, slot: _Slot) -> None:
        worker = WorkerId(f"{slot.pool}-{slot.index}-{secrets.token_hex(2)}")
        role = Role(slot.pool)
        spec = WorkerSpec(worker=worker, pool=slot.pool, role=role)
        self._roster.expect(WorkerInfo(worker=worker, pool=slot.pool, role=role, state=WorkerState.PENDING))
        try:
            job_id = await self._cluster.launch(spec)
        except ClusterError as err:
            self._roster.end(worker, WorkerState.FAILED, err.message)
            info = self._roster.get(worker)
            assert info is not None
            job = JobRecord(worker=worker, pool=slot.pool, role=role, job_id="", cluster=self._cluster.kind)
            self._vacate(slot, job, info, err.message)
            return
        slot.job = JobRecord(
            worker=worker,
            pool=slot.pool,
            role=role,
            job_id=job_id,
            cluster=self._cluster.kind,
            index=slot.index,
            submitted_at=time.time(),
        )
        self._roster.update_job(worker, job_id=job_id)
        self._record()

    def _records(self) -> list[JobRecord]:
        return [slot.job for slot in self._slots if slot.job] + [job for job, _ in self._ending.values()]

    def _record(self) -> None:
        self._state.write_jobs(self._records())
