"""The event loop: arrivals, ends of steps and KV events on one heap, in virtual time.

It does what the dispatcher and the head do online, with the same router: assign, prefill elsewhere if told so, pull,
decode, report, release. It loses no workers, and requests never hang up. Where the planner acts, see `planned.py`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from enum import IntEnum
from itertools import count
from math import inf

from hpcserve.engine.mock.sequence import Sequence
from hpcserve.errors import HpcserveError
from hpcserve.router.router import Router
from hpcserve.simulate.record import CountdownWriter, Gaps, Record
from hpcserve.simulate.report import Report, make_report
from hpcserve.simulate.scenario import Scenario
from hpcserve.simulate.timeline import Timeline
from hpcserve.simulate.trace import TraceRequest
from hpcserve.simulate.worker import Finished, SimulatedWorker
from hpcserve.types import (
    Assignment,
    Caller,
    KvEventBatch,
    RequestId,
    Role,
    RouteRequest,
    WorkerId,
    WorkerInfo,
    WorkerState,
)

_BLOCKS_PER_REQUEST = 1 << 20  # more than any request generates; keeps the names of generated blocks apart


class Kind(IntEnum):
    """What comes first at equal times: results before the choices that use them, arrivals before the step they join."""

    END = 0
    EVENTS = 1
    ARRIVAL = 2
    PLACE = 3
    BEGIN = 4
    PLAN = 5


def replay(scenario: Scenario, trace: Iterable[TraceRequest], timeline: Timeline | None = None) -> Report:
    """Run all requests to their end and sum up. Raises `ConfigError` for a scenario that makes no sense."""
    scenario.check()
    return Replay(scenario, timeline).run(trace)


def replay_records(scenario: Scenario, trace: Iterable[TraceRequest]) -> list[Record]:
    """Run all requests to their end, and return what happened to each, by arrival. Raises `ConfigError`."""
    scenario.check()
    run = Replay(scenario, None)
    run.run(trace)
    return run.records


class Replay:
    """One run: the router, the workers and the requests under way."""

    def __init__(self, scenario: Scenario, timeline: Timeline | None, gaps: Gaps | None = None) -> None:
        self._scenario = scenario
        self._timeline = timeline
        self._router = Router(scenario.router, scenario.limits.block_size)
        self._workers: dict[WorkerId, SimulatedWorker] = {}
        self.records: list[Record] = []
        self._gaps = gaps or Gaps()
        self._heap: list[tuple[float, int, int, Callable[[float], None]]] = []
        self._ticks = count()
        self._placed_at = -inf  # PLACE is on the heap for this time
        self._has_computed = False  # a prompt, since the router was last asked to place
        self._seqs: dict[WorkerId, int] = {}
        self._add_workers()

    def run(self, trace: Iterable[TraceRequest]) -> Report:
        """Run all requests to their end, once."""
        for request in trace:
            self._at(request.arrives_at / self._scenario.speed, Kind.ARRIVAL, self._arriving(request))
        heap = self._heap
        while heap:
            now, _, _, act = heapq.heappop(heap)
            act(now)
        if self._timeline is not None:
            self._timeline.close(self.records, self._gaps)
        return self._report_on()

    def _report_on(self) -> Report:
        return make_report(self._scenario, self.records, self._gaps, self._router.stats())

    def _add_workers(self) -> None:
        s = self._scenario
        pools = {Role.PREFILL: s.prefill, Role.DECODE: s.decode} if s.is_disaggregated else {Role.BOTH: s.workers}
        for role, size in pools.items():
            for index in range(size):
                self._add_worker(WorkerId(f"{role}-{index}"), index, role)

    def _add_worker(self, worker: WorkerId, index: int, role: Role) -> WorkerInfo:
        s = self._scenario
        self._workers[worker] = SimulatedWorker(worker, s.limits, s.timing_of(index))
        info = WorkerInfo(worker=worker, pool=role.value, role=role, state=WorkerState.READY, engine=s.engine_info)
        self._router.update_worker(info)
        return info

    def _at(self, when: float, kind: Kind, act: Callable[[float], None]) -> None:
        heapq.heappush(self._heap, (when, kind, next(self._ticks), act))

    # --- requests -------------------------------------------------------------------------------------------------

    def _arriving(self, request: TraceRequest) -> Callable[[float], None]:
        return lambda now: self._arrive(request, now)

    def _arrive(self, request: TraceRequest, now: float) -> None:
        limits = self._scenario.limits
        request_id = RequestId(f"r{len(self.records)}")
        names = request.block_hashes(limits.block_size)
        num_output = min(request.num_output, limits.num_blocks * limits.block_size - request.num_prompt)
        record = Record(request_id, now, request.num_prompt, num_output, names, priority=request.priority)
        self.records.append(record)
        if num_output < 1:
            record.is_rejected = True
            return
        route = RouteRequest(
            request_id=request_id,
            block_hashes=names,
            num_tokens=request.num_prompt,
            max_tokens=num_output,
            priority=request.priority,
            caller=Caller(session=request.session),
        )
        try:
            self._router.submit(route, now)
        except HpcserveError:
            record.is_rejected = True
            return
        self._place_soon(now)

    def _place_soon(self, now: float) -> None:
        """Place what waits after everything else that happens now: a burst is placed together."""
        if self._router.num_waiting + self._router.num_backfilling and self._placed_at != now:
            self._placed_at = now
            self._at(now, Kind.PLACE, self._place)

    def _place(self, now: float) -> None:
        self._placed_at = -inf
        for request_id in self._router.expire(now):
            self.records[int(request_id[1:])].is_rejected = True
        for assignment in self._router.place(now):
            self._start(self.records[int(assignment.request_id[1:])], assignment, now)

    def _start(self, record: Record, assignment: Assignment, now: float) -> None:
        record.assignment = assignment
        if assignment.prefill is None:
            self._submit(record, assignment.decode, self._pullable(assignment, record), now)
        else:
            self._submit(record, assignment.prefill, self._pullable(assignment, record), now, prefill_only=True)

    def _pullable(self, assignment: Assignment, record: Record) -> int:
        """Return how many tokens the source of a pull really has. They move: the source may forget them."""
        if assignment.source is None:
            return 0
        size = self._scenario.limits.block_size
        wanted = record.block_hashes[: assignment.source_tokens // size]
        source = self._workers[assignment.source]
        num_held = source.held(wanted)
        source.demote(wanted)
        return num_held * size

    def _submit(
        self, record: Record, worker: WorkerId, pull_tokens: int, now: float, *, prefill_only: bool = False
    ) -> None:
        assert record.assignment is not None
        num_output = 1 if prefill_only else record.num_output
        index = int(record.request_id[1:])
        sequence = Sequence(
            request_id=record.request_id,
            num_prompt=record.num_prompt,
            names=list(record.block_hashes),
            writer=CountdownWriter(record, num_output, index * _BLOCKS_PER_REQUEST),
            prefill_only=prefill_only,
            priority=record.priority,
            pull_tokens=pull_tokens,
            reused_tokens=record.assignment.reused_tokens,
        )
        simulated = self._workers[worker]
        before = simulated.ends_at
        simulated.add(sequence, now)
        if before is None:
            self._at(now, Kind.BEGIN, self._beginning(simulated))
        elif simulated.ends_at != before:
            self._schedule_end(simulated)

    # --- workers --------------------------------------------------------------------------------------------------

    def _beginning(self, worker: SimulatedWorker) -> Callable[[float], None]:
        return lambda now: self._begin(worker, now)

    def _begin(self, worker: SimulatedWorker, now: float) -> None:
        if worker.ends_at is not None:
            return
        worker.begin(now)
        if worker.ends_at is not None:
            self._schedule_end(worker)
            return
        wakes_at = worker.scheduler.wakes_at(now)
        if wakes_at is not None:
            self._at(wakes_at, Kind.BEGIN, self._beginning(worker))

    def _schedule_end(self, worker: SimulatedWorker) -> None:
        assert worker.ends_at is not None
        self._at(worker.ends_at, Kind.END, lambda now: self._end(worker, now))

    def _end(self, worker: SimulatedWorker, now: float) -> None:
        if worker.ends_at != now:
            return  # a leap that was cut short has ended already
        finished = worker.finish()
        if finished.events and self._scenario.kv_events:
            self._publish(worker.worker, finished, now)
        self._note_tokens(worker, finished, now)
        for sequence in finished.ended:
            self._finish(worker, sequence, now)
        self._report(worker, now)
        if finished.ended or self._has_computed:
            self._has_computed = False
            self._place_soon(now)
        self._at(now, Kind.BEGIN, self._beginning(worker))

    def _publish(self, worker: WorkerId, finished: Finished, now: float) -> None:
        seq = self._seqs[worker] = self._seqs.get(worker, 0) + 1
        batch = KvEventBatch(worker=worker, seq=seq, events=finished.events)
        if self._scenario.event_delay_s > 0:
            self._at(now + self._scenario.event_delay_s, Kind.EVENTS, lambda _: self._apply(batch))
        else:
            self._apply(batch)

    def _apply(self, batch: KvEventBatch) -> None:
        self._router.apply(batch)

    def _note_tokens(self, worker: SimulatedWorker, finished: Finished, now: float) -> None:
        later_steps_s = finished.steps_s[1:]
        self._gaps.add_each(later_steps_s, len(finished.emitted))
        first_at = now - sum(later_steps_s)  # end of the first step
        for sequence in finished.emitted:
            writer = sequence.writer
            assert isinstance(writer, CountdownWriter)
            if sequence.prefill_only:
                continue
            if writer.last_at is None:
                writer.record.first_token_at = now
                self._count_prompt(worker, sequence, writer.record)
            else:
                self._gaps.add(first_at - writer.last_at)
            writer.last_at = now

    def _count_prompt(self, worker: SimulatedWorker, sequence: Sequence, record: Record) -> None:
        cached = sequence.cached_tokens or 0
        worker.prompt_tokens += sequence.num_prompt
        worker.cached_tokens += cached
        worker.pulled_tokens += sequence.pulled_tokens
        record.pulled_tokens += sequence.pulled_tokens
        if sequence.prefill_only or (record.assignment is not None and record.assignment.prefill is None):
            record.first_cached_tokens = record.cached_tokens = cached
            record.prefix_pulled_tokens = sequence.pulled_tokens
        self._router.prefill_done(record.request_id)
        self._has_computed = True

    def _finish(self, worker: SimulatedWorker, sequence: Sequence, now: float) -> None:
        assert isinstance(sequence.writer, CountdownWriter)
        record = sequence.writer.record
        if sequence.prefill_only:
            self._count_prompt(worker, sequence, record)
            assert record.assignment is not None
            self._submit(record, record.assignment.decode, record.num_prompt, now)
            return
        record.ended_at = now
        if sequence.num_preemptions:
            record.cached_tokens = max(record.cached_tokens, sequence.most_cached_tokens)
        record.block_hashes = []
        self._router.release(record.request_id)

    def _report(self, worker: SimulatedWorker, now: float) -> None:
        if now - worker.reported_at < self._scenario.report_interval_s:
            return
        worker.reported_at = now
        load = worker.load()
        self._router.report(worker.worker, load)
        if self._timeline is not None:
            self._timeline.add(now, worker.worker, load, self._router.loads()[worker.worker].indexed_blocks)
