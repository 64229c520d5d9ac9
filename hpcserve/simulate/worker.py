"""One simulated worker: the mock engine's scheduler between two points of virtual time.

It is idle, or busy until `ends_at`. It decides nothing: the replay calls `begin` when it may start, and `finish` when
its step, or leap of equal steps, is over.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass
from math import inf
from operator import sub

from hpcserve.engine.mock.leap import Leap, LeapingScheduler
from hpcserve.engine.mock.meter import Meter
from hpcserve.engine.mock.scheduler import Limits, Step
from hpcserve.engine.mock.sequence import Sequence
from hpcserve.engine.mock.timing import TimingModel
from hpcserve.types import BlockHash, KvEvent, LoadReport, WorkerId


@dataclass(frozen=True, slots=True)
class Finished:
    """What is there at the end of a step or leap."""

    events: list[KvEvent]
    emitted: Many[Sequence]  # got a token at the end of each step
    ended: Many[Sequence]
    steps_s: list[float]  # durations


class SimulatedWorker:
    """The scheduler of one worker, and what it is doing."""

    def __init__(self, worker: WorkerId, limits: Limits, timing: TimingModel) -> None:
        self.worker = worker
        self.scheduler = LeapingScheduler(limits, timing)
        self.ends_at: float | None = None  # of what is running; None: idle
        self.reported_at = -inf
        self.generated_tokens = 0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.pulled_tokens = 0
        self._meter = Meter()
        self._step: Step | None = None
        self._leap: Leap | None = None
        self._num_steps = 0  # of the leap that will be done

    def begin(self, now: float) -> None:
        """Start the next step or leap of an idle worker, if there is something to do now."""
        if self.scheduler.wakes_at(now) != now:
            return
        self._leap = self.scheduler.find_leap(now)
        if self._leap is not None:
            self._num_steps = len(self._leap.ends)
            self.ends_at = self._leap.ends[-1]
        else:
            self._step = self.scheduler.step(now)
            self.ends_at = now + self._step.duration_s

    def add(self, sequence: Sequence, now: float) -> None:
        """Queue a sequence. It is looked at when the running step is over, so a leap ends there."""
        self.scheduler.add(sequence)
        if self._leap is not None:
            self._num_steps = self._leap.begun_before(now)
            self.ends_at = self._leap.ends[self._num_steps - 1]

    def finish(self) -> Finished:
        """Return what the step or leap gave, and be idle."""
        self.ends_at = None
        leap, step = self._leap, self._step
        self._leap = self._step = None
        if leap is not None:
            return self._finish_leap(leap)
        assert step is not None
        self._meter.add(step, self.scheduler.kv_read(step.decode_context))
        self.generated_tokens += len(step.emitted)
        return Finished(step.events, step.emitted, step.finished, [step.duration_s])

    def held(self, names: Many[BlockHash]) -> int:
        """Return how many leading blocks of `names` are in its cache."""
        return len(self.scheduler.pool.find(names))

    def demote(self, names: Many[BlockHash]) -> None:
        """Forget these next: another worker takes them over. Online a request that `moves_away` says so."""
        self.scheduler.pool.demote(names)

    def load(self) -> LoadReport:
        """Return what the engine would report now."""
        sequences = self.scheduler.sequences
        return LoadReport(
            num_running=self.scheduler.num_running,
            num_waiting=len(sequences) - self.scheduler.num_running,
            waiting_tokens=sum(max(0, s.num_prompt - max(s.num_computed, s.pull_tokens)) for s in sequences.values()),
            kv_usage=self.scheduler.pool.usage,
            prefill_tokens_per_s=self._meter.prefill.per_s,
            decode_tokens_per_s=self._meter.decode.per_s,
            prompt_tokens_total=self.prompt_tokens,
            generated_tokens_total=self.generated_tokens,
            cached_tokens_total=self.cached_tokens,
            pulled_tokens_total=self.pulled_tokens,
            work=self._meter.work.done(),
        )

    def _finish_leap(self, leap: Leap) -> Finished:
        first = sum(sequence.num_tokens for sequence in leap.sequences)
        events = self.scheduler.leap(leap, self._num_steps)
        ends = leap.ends[: self._num_steps]
        steps_s = list(map(sub, ends, [leap.begins_at, *ends]))
        num = len(leap.sequences)  # of tokens that the context grows by in each step
        read, growth = self.scheduler.kv_read(first + (len(ends) - 1) * num / 2), self.scheduler.kv_read(num)
        self._meter.add_leap(num, len(ends), ends[-1] - leap.begins_at, read, growth)
        self.generated_tokens += len(leap.sequences) * self._num_steps
        return Finished(events, leap.sequences, (), steps_s)
