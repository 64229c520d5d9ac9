"""How long a pass over a prompt takes, and how much longer a client waits for the first token.

A pass is measured from engine to engine: while the engine computes a prompt that is only there to keep it busy, the
prompt to be measured is sent and waits. The time from the first one's token to the second one's is the pass; what lies
between a client and the engine is the same for both and falls out. A lone prompt's time to first token has it.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from hpcserve.bench.probe import Probe
from hpcserve.bench.result import PrefillPoint
from hpcserve.errors import EngineError

_PARTS = (1 / 128, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)  # of the longest prompt
_QUICK_PARTS = (1 / 64, 1 / 16, 1 / 4, 1 / 2, 1)
_TRIES = 8
_BUSY_PART = 1 / 4  # of the longest prompt: its pass lasts far longer than a request takes to arrive
_WHEN_TO_SEND = 0.25  # of the time that the engine is kept busy


def prefill_lengths(longest: int, *, quick: bool) -> list[int]:
    """Return the numbers of tokens to measure at, ascending, up to `longest`."""
    return sorted({max(1, round(longest * part)) for part in (_QUICK_PARTS if quick else _PARTS)})


async def measure_prefill(probe: Probe, lengths: Sequence[int], repeats: int) -> list[PrefillPoint]:
    """Return a point for each length. Raises `EngineError`.

    Lengths take turns, so that a machine that slows down for a while does not bend the curve in one place.
    """
    longest = max(lengths)
    busy = [(size, await probe.first_token_s(size)) for size in (max(1, round(longest * _BUSY_PART)), longest)]
    ttfts: dict[int, list[float]] = {length: [] for length in lengths}
    passes: dict[int, list[float]] = {length: [] for length in lengths}
    for _ in range(repeats):
        for length in lengths:
            ttfts[length].append(await probe.first_token_s(length))
            passes[length].append(await _measure_pass(probe, length, busy))
    return [
        PrefillPoint(
            num_tokens=length,
            ttft_ms=statistics.median(ttfts[length]) * 1000,
            pass_ms=statistics.median(passes[length]) * 1000,
            spread=spread(passes[length]),
        )
        for length in lengths
    ]


async def _measure_pass(probe: Probe, length: int, busy: Sequence[tuple[int, float]]) -> float:
    """Return the seconds of a pass over a prompt of `length` tokens.

    `busy` has the sizes of prompts that keep the engine busy, with the seconds that they take; the last one is for
    machines that are so slow to send the other prompt that it comes too late.
    """
    for attempt in range(_TRIES):
        size, busy_s = busy[min(attempt, len(busy) - 1)]
        async with probe.open():
            first = probe.start(size, max_tokens=1)
            await probe.clock.sleep(busy_s * _WHEN_TO_SEND)
            was_in_time = not first.num_generated
            second = probe.start(length, max_tokens=1)
            await probe.reached(first, 1)
            was_apart = not second.num_generated
            await probe.reached(second, 1)
            if was_in_time and was_apart:
                return second.arrivals[0][0] - first.arrivals[0][0]
    raise EngineError(
        f"a pass over {length} tokens could not be told from the one before it in {_TRIES} tries; "
        "is the machine busy with something else?"
    )


def spread(values: Sequence[float]) -> float:
    """Return the distance of the quartiles over the median; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / middle
