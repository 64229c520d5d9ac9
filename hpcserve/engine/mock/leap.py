"""Many decode steps at once, for a simulator. The steps and their outcome are those that `Scheduler.step` would give.

While every running sequence only decodes, none ends, none needs a block, and nobody new can be admitted, one step is
like the next: the same sequences get a token each. Such steps are timed, but not run. It does not know when somebody
else will interfere: the caller cuts a leap short.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate
from math import inf
from typing import Protocol, cast

from hpcserve.engine.mock.scheduler import Scheduler
from hpcserve.engine.mock.sequence import Sequence, Writer
from hpcserve.types import KvEvent


class CountingWriter(Writer, Protocol):
    """A writer that knows its end."""

    num_left: int  # tokens still to be written


@dataclass(frozen=True, slots=True)
class Leap:
    """Steps that may be done at once, back to back from `begins_at`."""

    begins_at: float  # s
    ends: list[float]  # s, of each step
    sequences: tuple[Sequence, ...]  # each gets a token in each step

    def begun_before(self, when: float) -> int:
        """Return how many of the steps begin before `when`; the first one in any case."""
        return min(len(self.ends), bisect_left(self.ends, when) + 1)


class LeapingScheduler(Scheduler):
    """A scheduler whose sequences all have a `CountingWriter`."""

    def find_leap(self, now: float) -> Leap | None:
        """Return the plain decode steps that come next if nobody adds or aborts a sequence. None: `step` must look."""
        running = self._running
        if not running or self._landed or len(running) > self.limits.max_batched_tokens:
            return None
        num_steps = min(map(self._num_plain_steps, running))
        if num_steps < 1 or self._can_admit():
            return None
        lands_at = self._pulls[0][0] if self._pulls else inf
        if lands_at <= now:
            return None
        leap = Leap(now, self._ends(now, num_steps), tuple(running))
        del leap.ends[leap.begun_before(lands_at) :]
        return leap

    def leap(self, leap: Leap, num_steps: int) -> list[KvEvent]:
        """Do the first `num_steps` steps of what `find_leap` found. Returns the events, which are there at the end."""
        for sequence in leap.sequences:
            sequence.num_tokens += num_steps
            sequence.num_computed += num_steps
            _writer(sequence).num_left -= num_steps
            if sequence.num_computed // self.limits.block_size > sequence.num_named:
                self._name_full_blocks(sequence)
        return self.pool.take_events()

    def _ends(self, now: float, num_steps: int) -> list[float]:
        """Return when each of the next steps ends, if each gives every running sequence a token."""
        context = sum(sequence.num_tokens for sequence in self._running)
        contexts = range(context, context + num_steps * len(self._running), len(self._running))
        capacity = self.limits.num_blocks * self.limits.block_size
        durations = self.timing.decode_many_s([min(1.0, context / capacity) for context in contexts])
        return list(accumulate(durations, initial=now))[1:]

    def _num_plain_steps(self, sequence: Sequence) -> int:
        """Return in how many steps it would get its next token without a new block, and without ending."""
        if sequence.num_computed < sequence.num_prompt or sequence.num_tokens - sequence.num_computed != 1:
            return 0
        room = len(sequence.blocks) * self.limits.block_size - sequence.num_computed
        return min(room, _writer(sequence).num_left - 1)

    def _can_admit(self) -> bool:
        return len(self._running) < self.limits.max_num_seqs and self._find_next() is not None


def _writer(sequence: Sequence) -> CountingWriter:
    return cast(CountingWriter, sequence.writer)
