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
_TRIES = 5
_BUSY_PART = 1 / 4  # of the longest prompt: its pass lasts far longer than a request takes to arrive
_WHEN_TO_SEND = 0.25  # of the time that the engine is kept busy


def prefill_lengths(longest: int, *, quick: bool) -> list[int]:
    """Return the numbers of tokens to measure at, ascending, up to `longest`."""
    return sorted({max(1, round(longest * part)) for part in (_QUICK_PARTS if quick else _PARTS)})


async def measure_prefill(probe: Probe, lengths: Sequence[int], repeats: int) -> list[PrefillPoint]:
    """Return a point for each length. Raises `EngineError`.

    Lengths take turns, so that a machine that slows down for a while does not bend the curve in one place.
    """
    busy = max(1, round(max(lengths) * _BUSY_PART))
    busy_s = await probe.first_token_s(busy)
    ttfts: dict[int, list[float]] = {length: [] for length in lengths}
    passes: dict[int, list[float]] = {length: [] for length in lengths}
    for _ in range(repeats):
        for length in lengths:
            ttfts[length].append(await probe.first_token_s(length))
            passes[length].append(await _measure_pass(probe, length, busy, busy_s))
    return [
        PrefillPoint(
            num_tokens=length,
            ttft_ms=statistics.median(ttfts[length]) * 1000,
            pass_ms=statistics.median(passes[length]) * 1000,
            spread=spread(passes[length]),
        )
        for length in lengths
    ]


async def _measure_pass(probe: Probe, length: int, busy: int, busy_s: float) -> float:
    """Return the seconds of a pass over a prompt of `length` tokens."""
    for _ in range(_TRIES):
        async with probe.open():
            first = probe.start(busy, max_tokens=1)
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
