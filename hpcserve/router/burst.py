"""Who of those that wait starts now, and where: all of them are looked at together. Numbers only.

Requests often come in bursts, larger than the number of workers whose hands are free. Then some have to wait for
others, and it matters which. With n requests and F free workers, n - F wait behind somebody; the sum of all waiting is
least if they wait behind the n - F shortest, whoever they are. So there is a choice, and it goes to requests of
middling length: the short ones would notice the wait most, and the longest are those that end last anyway. Short ones
share a pass of one worker, where that delays them less than a pass of their own would delay others.

Then starting at a free worker, and waiting for one (the shortest request's end, at a free one; its prompt's end, at a
busy one), are columns of one assignment problem. So a request may also wait for a worker that suits it much better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpcserve.router.matching import match

HOLD_BELOW = 0.7
"""Those that wait are taken from below this quantile of the lengths."""
SHORT, MIDDLING, LONG = 2.0, 1.0, 1.75
"""How much a millisecond of waiting counts for those that should start first, those that should wait, the others."""
MOST_MS = 170.0
"""Prompts whose tokens take longer than this fill a pass of their own."""
LEAST_WAIT_MS = 5.0
IDLE_WAIT_MS = 50.0  # for a worker that is free, where everybody could start at once
NEVER = 1e9  # ms; a cost that stands for "cannot"

_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Burst:
    """Requests that might start now. All times in milliseconds."""

    units: list[list[int]]  # requests that start together, if they do; of all those above, in the order they should go
    work: list[float]  # to compute each prompt, as it could be best; (n,)
    waited: list[float]  # so far; whoever waited longer waits less for a worker that suits it better; (n,)
    costs: _Floats  # of starting each at each worker at once; NEVER where it cannot; (n, workers)
    is_free: NDArray[np.bool_]  # (workers,)
    free_in: _Floats  # until each worker has computed what it has; (workers,)


def pack(work: Sequence[float], num_free: int, num_behind: int, pass_ms: float) -> list[list[int]]:
    """Return which of the requests should share a pass, for as long as there are more than free workers.

    `work` is in milliseconds, in the order in which they should go; `num_behind` more wait behind them; `pass_ms` is
    what a pass takes besides its tokens. Two neighbours share a pass if what the second adds delays the first by less
    than a pass of their own would delay the second and those behind: k_1 * tokens_2 < pass * (k_2 + behind a worker).
    """
    units = [[request] for request in range(len(work))]
    tokens = [max(0.0, each - pass_ms) for each in work]  # what each adds to a pass
    has_merged = True
    while has_merged and len(units) > num_free:
        has_merged, at = False, 0
        while at + 1 < len(units) and len(units) > num_free:
            behind = (num_behind + len(units) - num_free) / max(num_free, 1)
            second = sum(tokens[request] for request in units[at + 1])
            if len(units[at]) * second < pass_ms * (len(units[at + 1]) + behind) and second < MOST_MS:
                units[at : at + 2] = [units[at] + units[at + 1]]
                has_merged = True
            at += 1
    return units


def choose(burst: Burst) -> list[tuple[int, int]]:
    """Return (request, worker) of those that start now.

    There is at least one free worker, and at most twice as many units as free workers.
    """
    free, units = np.flatnonzero(burst.is_free), burst.units
    costs = np.minimum([burst.costs[unit].sum(axis=0) for unit in units], NEVER)
    waited = np.array([burst.waited[unit[0]] for unit in units])
    num_held = max(0, len(units) - len(free))
    delays = np.maximum(burst.free_in, LEAST_WAIT_MS)
    delays[burst.is_free] = burst.work[units[0][0]] if num_held else IDLE_WAIT_MS
    weights = _weights(len(units), num_held)
    holds = costs + np.outer(weights, delays) + waited[:, None]
    columns = match(np.hstack((costs[:, free], holds)))
    started = []
    for number, column in enumerate(columns):
        if column < len(free) and costs[number, free[column]] < NEVER:
            started += [(request, int(free[column])) for request in units[number]]
    return started


def _weights(num_units: int, num_held: int) -> _Floats:
    weights = np.full(num_units, LONG)
    begin = max(num_held, min(num_units - num_held, round(HOLD_BELOW * num_units) - num_held))
    weights[begin : begin + num_held] = MIDDLING
    weights[:num_held] = SHORT
    return weights
