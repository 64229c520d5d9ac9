"""A replay in which the planner acts: roles change at once, workers come after a wait and go once they are drained.

Everything else is `event_loop.py`'s. A worker counts from the start of its job, its loading included, to its end; the
wait in a queue costs nothing but time.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from hpcserve.config.models import PoolsConfig
from hpcserve.observability.metrics import ITL_S
from hpcserve.planner import Decision, Flip, Observer, Planner, Resize
from hpcserve.planner.decisions import kind_of
from hpcserve.simulate.event_loop import Kind, Replay
from hpcserve.simulate.record import Gaps, Record
from hpcserve.simulate.report import Report, make_report
from hpcserve.simulate.scenario import Scenario
from hpcserve.simulate.trace import TraceRequest
from hpcserve.types import Role, Traffic, WorkerId, WorkerInfo, WorkerState


class PlannedChange(msgspec.Struct, frozen=True, kw_only=True):
    """A decision of the planner."""

    at_s: float
    kind: str  # "flip", "grow" or "shrink"
    text: str


class PlannedReport(msgspec.Struct, frozen=True, kw_only=True):
    """What came out, and what the planner did."""

    report: Report
    least_workers: int  # wanted at a time
    most_workers: int
    changes: list[PlannedChange]


def replay_planned(scenario: Scenario, trace: Iterable[TraceRequest]) -> PlannedReport:
    """Run all requests to their end, the planner acting. Raises `ConfigError` for a scenario that makes no sense."""
    scenario.check()
    run = _PlannedReplay(scenario)
    report = run.run(trace)
    sizes = run.totals
    return PlannedReport(report=report, least_workers=min(sizes), most_workers=max(sizes), changes=run.changes)


@dataclass
class _Life:
    """A worker, from when it is asked for. Times in seconds; None: not yet."""

    info: WorkerInfo
    starts_at: float  # its job
    ends_at: float | None = None

    @property
    def is_over(self) -> bool:
        return self.ends_at is not None


class _CountedGaps(Gaps):
    """Gaps that are counted by bucket, too, as frontends do."""

    def __init__(self) -> None:
        super().__init__()
        self.buckets = [0] * (len(ITL_S) + 1)

    def add(self, gap_s: float, count: int = 1) -> None:
        super().add(gap_s, count)
        self.buckets[bisect_left(ITL_S, gap_s)] += count

    def add_each(self, gaps_s: Iterable[float], count: int) -> None:
        for gap_s in gaps_s:
            self.add(gap_s, count)


class _PlannedReplay(Replay):
    """Adds the planner's ticks to a replay, and the lives of workers."""

    def __init__(self, scenario: Scenario) -> None:
        self._counted = _CountedGaps()
        self._lives: dict[WorkerId, _Life] = {}
        super().__init__(scenario, None, self._counted)
        pools = _pools_of(scenario)
        self._sizes = dict(pools.sizes)
        self._planner = Planner(scenario.planner, pools)
        self._observer = Observer(scenario.planner, self._router)
        self._num_arrivals = 0
        self._first_open = 0  # records before it are closed
        self.changes: list[PlannedChange] = []
        self.totals = [sum(self._sizes.values())]
        self._router.let_wait(without_workers=scenario.planner.min_workers == 0)

    def run(self, trace: Iterable[TraceRequest]) -> Report:
        """Run all requests to their end, once."""
        requests = list(trace)
        self._num_arrivals = len(requests)
        self._at(self._scenario.planner.interval_s, Kind.PLAN, self._plan)
        return super().run(requests)

    def _add_worker(self, worker: WorkerId, index: int, role: Role, now: float = 0.0) -> WorkerInfo:
        info = super()._add_worker(worker, index, role)
        self._lives[worker] = _Life(info, now)
        return info

    def _plan(self, now: float) -> None:
        for worker, life in self._lives.items():
            if life.info.state is WorkerState.READY:
                self._router.report(worker, self._workers[worker].load())
        self._retire(now)
        traffic = Traffic(itl=tuple(self._counted.buckets))
        infos = [life.info for life in self._lives.values() if not life.is_over]
        wait_s = self._scenario.queue_s + self._scenario.start_s
        seen = self._observer.observe(now, infos, self._sizes, traffic, wait_s)
        for decision in self._planner.decide(seen).decisions:
            self._take(decision, now)
        if self._has_open():
            self._at(now + self._scenario.planner.interval_s, Kind.PLAN, self._plan)

    def _take(self, decision: Decision, now: float) -> None:
        self.changes.append(PlannedChange(at_s=now, kind=kind_of(decision), text=decision.text))
        if isinstance(decision, Flip):
            self._update(decision.worker, role=decision.role)
        else:
            self._resize(decision, now)
        self._place_soon(now)

    def _resize(self, change: Resize, now: float) -> None:
        for pool, size in change.sizes.items():
            for _ in range(self._sizes[pool], size):
                self._ask_for(pool, now)
            mine = [life for life in self._lives.values() if not life.is_over and life.info.pool == pool]
            there = [life for life in mine if life.info.state is not WorkerState.DRAINING]
            turn = {worker: number for number, worker in enumerate(change.leaving)}
            there.sort(key=lambda life: (life.info.state is WorkerState.READY, turn.get(life.info.worker, len(turn))))
            for life in there[: max(0, len(there) - size)]:
                self._give_back(life, now)
        self._sizes = dict(change.sizes)
        self.totals.append(sum(self._sizes.values()))

    def _ask_for(self, pool: str, now: float) -> None:
        index = sum(life.info.pool == pool for life in self._lives.values())
        worker, role = WorkerId(f"{pool}-{index}"), Role(pool)
        starts_at = now + self._scenario.queue_s
        info = WorkerInfo(worker=worker, pool=pool, role=role, state=WorkerState.PENDING)
        self._lives[worker] = _Life(info, starts_at)
        self._at(starts_at + self._scenario.start_s, Kind.PLAN, lambda now: self._come(worker, index, role, now))

    def _come(self, worker: WorkerId, index: int, role: Role, now: float) -> None:
        life = self._lives[worker]
        if not life.is_over:
            life.info = Replay._add_worker(self, worker, index, role)
            self._place_soon(now)

    def _give_back(self, life: _Life, now: float) -> None:
        if life.info.state is WorkerState.PENDING:
            life.ends_at = max(now, life.starts_at)  # before its start it costs nothing
        else:
            self._update(life.info.worker, state=WorkerState.DRAINING)

    def _update(self, worker: WorkerId, **changes: object) -> None:
        life = self._lives[worker]
        life.info = msgspec.structs.replace(life.info, **changes)
        self._router.update_worker(life.info)

    def _retire(self, now: float) -> None:
        loads = self._router.loads()
        for worker, life in self._lives.items():
            is_leaving = life.info.state is WorkerState.DRAINING and not life.is_over
            if is_leaving and not loads[worker].num_requests:
                life.ends_at = now
                self._router.remove_worker(worker)

    def _has_open(self) -> bool:
        records = self.records
        while self._first_open < len(records) and _is_closed(records[self._first_open]):
            self._first_open += 1
        return self._first_open < self._num_arrivals

    def _report_on(self) -> Report:
        end = max((record.ended_at or 0.0 for record in self.records), default=0.0)
        ends = ((life.starts_at, end if life.ends_at is None else life.ends_at) for life in self._lives.values())
        worker_s = sum(max(0.0, min(ended, end) - started) for started, ended in ends)
        return make_report(self._scenario, self.records, self._gaps, self._router.stats(), worker_s)


def _pools_of(scenario: Scenario) -> PoolsConfig:
    if scenario.is_disaggregated:
        return PoolsConfig(mode="disaggregated", prefill=scenario.prefill, decode=scenario.decode)
    return PoolsConfig(workers=scenario.workers)


def _is_closed(record: Record) -> bool:
    return record.ended_at is not None or record.is_rejected
