"""How long a step takes in which all sequences decode, over the share of the KV cache that it reads.

A batch grows from one sequence until it fills much of the cache; between the stages a window of steps is timed. It is
done with long contexts and with short ones: the same share is then read by few sequences and by many.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from hpcserve.bench.prefill import spread
from hpcserve.bench.probe import Probe, Stream
from hpcserve.bench.result import DecodePoint
from hpcserve.errors import EngineError
from hpcserve.types import EngineInfo

_STAGES = (0.02, 0.06, 0.12, 0.25, 0.4, 0.6, 0.8, 1.0)  # of the largest share
_QUICK_STAGES = (0.1, 0.4, 1.0)
_SETTLE = 2  # tokens of the last sequence before a window; they may share a step with prompts
_PARTS = 6  # of a window
_LONG_OVER_SHORT = 8
_TRIES = 5


@dataclass(frozen=True, kw_only=True)
class DecodePlan:
    """What batches to grow."""

    contexts: tuple[int, ...]  # prompt tokens of each sequence
    stages: tuple[float, ...]  # shares of the KV cache, ascending
    max_num_seqs: int
    max_model_len: int
    num_blocks: int
    block_size: int  # tokens
    steps: int  # in a window

    @property
    def capacity(self) -> int:
        """Tokens that the KV cache holds."""
        return self.num_blocks * self.block_size


def plan_decode(
    info: EngineInfo, *, context: int | None, max_num_seqs: int, max_share: float, quick: bool
) -> DecodePlan:
    """Return the plan for an engine: with `context` only sequences of so many tokens, else short and long ones."""
    capacity = info.num_kv_blocks * info.block_size
    most = max(1, info.max_model_len // 2)  # the other half is for what they generate
    short = min(most, max(2 * info.block_size, capacity // max_num_seqs))
    contexts = (min(context, most),) if context is not None else tuple({short, min(most, short * _LONG_OVER_SHORT)})
    return DecodePlan(
        contexts=tuple(sorted(contexts, reverse=True)),
        stages=tuple(max_share * stage for stage in (_QUICK_STAGES if quick else _STAGES)),
        max_num_seqs=max_num_seqs,
        max_model_len=info.max_model_len,
        num_blocks=info.num_kv_blocks,
        block_size=info.block_size,
        steps=12 if quick else 24,
    )


async def measure_decode(probe: Probe, plan: DecodePlan) -> list[DecodePoint]:
    """Return a point for each stage of each batch. Raises `EngineError`."""
    points: list[DecodePoint | None] = []
    for context in plan.contexts:
        async with probe.open():
            batch = _Batch(probe, plan, context)
            points += [await batch.measure(share) for share in (0.0, *plan.stages)]
    return [point for point in points if point is not None]


@dataclass
class _Batch:
    """Sequences that decode together. All have KV blocks for all that they may become, so none is ever preempted."""

    probe: Probe
    plan: DecodePlan
    prompt: int  # tokens
    running: list[Stream] = field(default_factory=list)

    @property
    def context(self) -> int:
        """Tokens of all sequences."""
        return sum(stream.context for stream in self.running)

    @property
    def max_tokens(self) -> int:
        """What each sequence generates: enough for a few windows, and while many others come in."""
        return min(self.plan.max_model_len - self.prompt, max(4 * self.plan.steps, self.prompt // 6))

    async def measure(self, share: float) -> DecodePoint | None:
        """Return a point at about a share of the KV cache; None where there is no room for more sequences."""
        if not await self._grow(share):
            return None
        for _ in range(_TRIES):
            if (point := await self._time_steps()) is not None:
                return point
            await self._grow(share)
        raise EngineError(f"sequences of {self.max_tokens} tokens end before their steps are timed; lower --context")

    async def _grow(self, share: float) -> bool:
        """Replace what ends soon, and add up to a share of the KV cache, at least one; False if nothing was added."""
        lasting = self.max_tokens - 2 * self.plan.steps - _SETTLE  # two windows: one passes while others come in
        old, self.running = self.running, [stream for stream in self.running if stream.num_generated <= lasting]
        await self.probe.drop(stream for stream in old if stream not in self.running)
        before = len(self.running)
        while not self.running or (self.context + self.prompt <= share * self.plan.capacity and self._has_room()):
            self.running.append(self.probe.start(self.prompt, self.max_tokens))
        for stream in reversed(self.running[before:]):
            await self.probe.reached(stream, 1)
        return len(self.running) > before

    def _has_room(self) -> bool:
        """Return whether one more sequence can run to its end."""
        blocks = -(-(self.prompt + self.max_tokens) // self.plan.block_size)
        most = min(self.plan.max_num_seqs, self.plan.num_blocks // blocks)
        return len(self.running) < most

    async def _time_steps(self) -> DecodePoint | None:
        """Time a window of steps; None if a sequence ended meanwhile."""
        last = self.running[-1]  # it has the most tokens left to generate
        await self.probe.reached(last, _SETTLE)
        began = last.num_generated
        await self.probe.reached(last, began + self.plan.steps)
        if any(stream.has_ended for stream in self.running):
            return None
        steps = _step_durations([arrival for arrival in last.arrivals if arrival[1] >= began])
        context = self.context - len(self.running) * (last.num_generated - began) // 2  # in the middle of the window
        return DecodePoint(
            num_sequences=len(self.running),
            context=context,
            share=context / self.plan.capacity,
            step_ms=statistics.median(steps) * 1000,
            spread=spread(steps),
        )


def _step_durations(arrivals: Sequence[tuple[float, int]]) -> list[float]:
    """Return seconds a token, one number a part of the window; a late output makes the next gap shorter."""
    size = max(1, (len(arrivals) - 1) // _PARTS)
    ends = arrivals[::size]
    return [(t1 - t0) / (n1 - n0) for (t0, n0), (t1, n1) in pairwise(ends)]
