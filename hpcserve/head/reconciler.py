"""Keeps the pools filled: what is wanted against what the cluster and the agents say; what died is launched again.

dask-jobqueue's own `scale` and `adapt` know one kind of worker and count dead jobs as alive (dask-jobqueue #691), so
the pools are ours: a slot for each wanted worker (`slots.py`), one job a slot, and near its end a second one
(`renewal.py`). Jobs whose worker is over are seen out by `burial.py`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from hpcserve.cluster.protocol import Cluster, JobState, JobView
from hpcserve.comm.protocol import Command
from hpcserve.config.models import Config
from hpcserve.errors import ClusterError, StartError
from hpcserve.head.burial import END_S, Burial
from hpcserve.head.ends import OWN_FAULTS, WILLED
from hpcserve.head.judge import Heard, judge, provisional_cause
from hpcserve.head.launcher import Launcher
from hpcserve.head.renewal import Renewal
from hpcserve.head.roster import Roster
from hpcserve.head.slots import Held, Slot, adopted_slots, fresh_slots, held_sizes, least_useful
from hpcserve.head.succession import Succession
from hpcserve.records import JobRecord
from hpcserve.state import StateDir
from hpcserve.types import EndCause, WorkerId, WorkerInfo, WorkerState
from hpcserve.worker_log import WorkerLog

log = logging.getLogger(__name__)

_UNKNOWN_S = 2.0  # before the next launch, while nobody says why a job ended
_STEADY_S = 30.0  # READY for so long, a worker's end is not its fault
_MAX_START_FAILURES = 2  # in a row, in a pool that never had a READY worker


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
        tell: Callable[[WorkerId, Command], None],
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`tell` has an agent do something; `clock` is for what passes here, `wall` gives Unix time, as Slurm does."""
        self._clock, self._wall = clock, wall
        self._config = config
        self._cluster = cluster
        self._roster = roster
        self._state = state
        self._poll_s = poll_s
        self._idle_poll_s = idle_poll_s
        self._tail = tail
        self._slots = [slot for pool, size in config.pools.sizes.items() for slot in fresh_slots(pool, (), size)]
        self._worked: set[str] = set()  # pools that had a READY worker
        self._life_log = life_log = WorkerLog(state)
        self._burial = Burial(config, cluster, roster, life_log, clock=clock, wall=wall)
        self._launcher = Launcher(cluster, roster, self._burial.blame, wall=wall)
        self._is_stale = False  # whether the jobs on record are not those that there are
        self._renewal = Renewal(config)
        self._renewal.learn(life_log.read())
        self._succession = Succession(
            config, cluster.kind, roster, self._renewal, self._burial, self._launcher, tell=tell, wall=wall
        )

    @property
    def ends(self) -> dict[EndCause, int]:
        """Workers that ended, by cause."""
        return dict(self._burial.counts)

    @property
    def excluded_nodes(self) -> dict[str, str]:
        """Nodes that get no more workers, and why."""
        return dict(self._burial.blame.excluded)

    async def run(self) -> None:
        """Reconcile until cancelled. Raises `StartError` when a pool that never worked cannot be brought up."""
        while True:
            try:
                await self.step()
            except StartError:
                raise
            except (ClusterError, OSError) as err:  # Slurm's controller is away, or the disk is full
                log.warning("not all could be done; trying again: %s", err)
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
            self._roster.find_silent()

    def _is_settled(self) -> bool:
        return not self._burial.records and all(self._is_well(slot) for slot in self._slots)

    def _is_well(self, slot: Slot) -> bool:
        held = slot.job
        is_ready = held is not None and self._roster.is_ready(held.worker)
        return is_ready and slot.successor is None and not self._succession.is_due(slot)

    async def step(self) -> None:
        """Compare once and act. The cluster's own failures are logged and tried again."""
        self._roster.find_silent()
        try:
            views = await self._cluster.observe()
        except ClusterError as err:
            log.warning("the cluster did not answer: %s", err.message)
            return
        await self._burial.look_up(views, self.held)
        for slot in self._slots:
            for held in list(slot.jobs()):
                self._judge(slot, held, views.get(held.record.job_id))
        self._is_stale |= await self._burial.step(views)
        self._is_stale |= self._succession.make_room(self._slots)
        for slot in self._slots:
            await self._renew(slot)
            if slot.job is None and self._clock() >= slot.retry_at:
                slot.job = await self._launch(slot)
            if self._is_stale:  # after each launch: no job is lost sight of
                self._record()

    @property
    def sizes(self) -> dict[str, int]:
        """Workers that are wanted now, by pool."""
        return {pool: sum(slot.pool == pool for slot in self._slots) for pool in self._config.pools.sizes}

    @property
    def held(self) -> list[JobRecord]:
        """The jobs that hold a wanted worker, successors among them."""
        return [held.record for slot in self._slots for held in slot.jobs()]

    @property
    def wait_s(self) -> float:
        """How long the slowest pool's workers take from their submission to READY, as far as is known."""
        return max(map(self._renewal.estimate_s, self._config.pools.sizes))

    def resize(self, sizes: Mapping[str, int], leaving: Sequence[WorkerId] = ()) -> None:
        """Want so many workers of each pool from now on. Who ends first of those above it: see `least_useful`."""
        for pool, size in sizes.items():
            held = [slot for slot in self._slots if slot.pool == pool]
            for slot in least_useful(held, len(held) - size, self._roster.get, leaving):
                self._slots.remove(slot)
                for job in slot.jobs():
                    self._send_away(job.record, "not wanted any more")
            self._slots += fresh_slots(pool, held, size - len(held))
        self._record()

    def adopt(self, records: Iterable[JobRecord]) -> None:
        """Take over the jobs that an earlier head left, before the first step; what has no slot is told to end."""
        adopted = list(records)
        for record in adopted:
            self._cluster.adopt(record.job_id)
            info = WorkerInfo(worker=record.worker, pool=record.pool, role=record.role, state=WorkerState.PENDING)
            self._roster.expect(info)
            self._roster.update_job(record.worker, job_id=record.job_id, host=record.node, ends_at=record.ends_at)
        sizes, self._slots = held_sizes(self.sizes, adopted) if self._config.planner.enabled else self.sizes, []
        for pool in {*sizes, *(record.pool for record in adopted)}:
            mine = [record for record in adopted if record.pool == pool]
            slots, left = adopted_slots(pool, sizes.get(pool, 0), mine, self._clock())
            self._slots += slots
            for record in left:
                self._send_away(record, "no place for it")
        began = self._state.began_at()
        lives = [life for life in self._life_log.read() if began is not None and life.submitted_at >= began]
        self._worked |= {job.pool for job in adopted if job.ready_at} | {life.pool for life in lives if life.ready_at}
        self._burial.recall(lives)
        self._record()

    async def stop_all(self, *, force: bool) -> None:
        """End every job and return when none is left; what does not end by itself is killed."""
        for slot in self._slots:
            for held in list(slot.jobs()):
                slot.release(held)
                self._burial.take(held.record, patience_s=0, cause=EndCause.TOLD)
        jobs = [record.job_id for record in self._burial.records]
        if jobs:
            await self._cluster.cancel(jobs, force=force)
            await self._wait_gone(jobs)
        self._burial.bury_all(EndCause.TOLD)
        self._record()

    async def _wait_gone(self, jobs: list[str]) -> None:
        try:
            await self._cluster.wait_gone(jobs, timeout_s=self._config.cluster.drain_timeout_s + 10)
        except ClusterError as err:
            log.warning("%s; forcing", err.message)
            await self._cluster.cancel(jobs, force=True)
            await self._cluster.wait_gone(jobs, timeout_s=60)

    def _judge(self, slot: Slot, held: Held, view: JobView | None) -> None:
        info = self._roster.get(held.worker)
        if info is None or view is None:
            return
        self._note_times(held, info, view)
        worker, cluster = held.worker, self._config.cluster
        heard = Heard(lost_s=self._roster.lost_for_s(worker), silent_s=self._roster.silent_for_s(worker))
        now, wall = self._clock(), self._wall()
        finding = judge(held, info, view, heard, now=now, wall=wall, start_timeout_s=cluster.start_timeout_s)
        if finding is None:
            self._carry_over(info, view)
            return
        if finding.is_given_up:
            self._roster.end(worker, WorkerState.FAILED, finding.detail)
        patience_s = 0.0 if finding.is_given_up else cluster.drain_timeout_s + END_S
        self._burial.take(held.record, patience_s=patience_s, cause=finding.cause, detail=finding.detail)
        cause = finding.cause or provisional_cause(info, view, self._burial.end_of(held.record.job_id))
        self._vacate(slot, held, cause, finding.detail or info.detail or view.reason)

    def _note_times(self, held: Held, info: WorkerInfo, view: JobView) -> None:
        """Write down what is new: for estimates, for the receipt, and for the next head."""
        record = held.record
        seen = {"started_at": view.started_at, "ends_at": view.ends_at, "node": view.host}
        if info.state is WorkerState.READY:
            self._worked.add(record.pool)
            held.ready_since = self._clock() if held.ready_since is None else held.ready_since
            if record.ready_at is None:
                seen["ready_at"] = self._wall()
                self._renewal.observe(record.pool, self._wall() - record.submitted_at)
        news = {name: value for name, value in seen.items() if value is not None and getattr(record, name) != value}
        if news and view.state is JobState.RUNNING:
            held.record = msgspec.structs.replace(record, **news)
            self._is_stale = True

    def _carry_over(self, info: WorkerInfo, view: JobView) -> None:
        """Tell the roster what only the cluster knows."""
        if view.state is JobState.PENDING:
            self._roster.update_job(info.worker, detail=view.reason)
            return
        if info.state is WorkerState.PENDING:
            self._roster.update_job(info.worker, state=WorkerState.STARTING, detail="", host=view.host)
        self._roster.update_job(info.worker, ends_at=view.ends_at)

    def _vacate(self, slot: Slot, held: Held, cause: EndCause | None, reason: str) -> None:
        """The worker takes nothing new: note when the next may be launched."""
        slot.release(held)
        self._is_stale = True
        now = self._clock()
        if cause is None:  # soon it is known whether it was at fault
            slot.retry_at = now + _UNKNOWN_S
        elif cause in WILLED or (held.ready_since is not None and now - held.ready_since > _STEADY_S):
            slot.num_failures = 0
        else:
            self._fail(slot, held.worker, cause, reason)

    def _fail(self, slot: Slot, worker: WorkerId, cause: EndCause, reason: str) -> None:
        slot.fail(self._clock(), self._config.renewal.max_backoff_s, reason)
        log.warning("%s failed (%d in a row): %s: %s", worker, slot.num_failures, cause, reason)
        is_hopeless = slot.pool not in self._worked and slot.num_failures >= _MAX_START_FAILURES
        if is_hopeless and cause in OWN_FAULTS:
            tail = self._tail(worker)
            raise StartError(
                f"pool {slot.pool!r} cannot be started: {worker} failed: {slot.last_failure}"
                + (f"\nlast lines of its log:\n{tail}" if tail else "")
            )

    async def _renew(self, slot: Slot) -> None:
        if not self._succession.is_due(slot):
            await self._succession.learn(slot)
        elif self._succession.hand_over(slot):
            self._is_stale = True
        elif slot.successor is None and self._clock() >= slot.retry_at:
            slot.successor = await self._launch(slot)

    def _send_away(self, record: JobRecord, why: str) -> None:
        patience_s = self._config.cluster.drain_timeout_s + END_S
        self._burial.take(record, patience_s=patience_s, cause=EndCause.TOLD, detail=why, cancel=True)

    async def _launch(self, slot: Slot) -> Held | None:
        try:
            held = await self._launcher.launch(slot)
        except ClusterError as err:
            self._fail(slot, WorkerId(slot.pool), EndCause.FAILED, err.message)
            return None
        self._is_stale = True
        return held

    def _record(self) -> None:
        self._is_stale = False
        self._state.write_jobs([*self.held, *self._burial.records])
