"""Who of those that wait starts now, and where: all of them are looked at together. Numbers only.

Requests often come in bursts, larger than the number of workers whose hands are free. Then some have to wait for
others, and it matters which. With n requests and F free workers, n - F wait behind somebody; the sum of all waiting is
least if they wait behind the n - F shortest, whoever they are. So there is a choice, and it goes to requests of
middling length: the short ones would notice the wait most, and the longest are those that end last anyway. Very short
ones start together on one worker, where that delays them less than a place of their own would delay others.

Then starting at a free worker, and waiting for one (the shortest request's end, at a free one; its prompt's end, at a
busy one), are columns of one assignment problem. So a request may also wait for a worker that suits it much better.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpcserve.router.matching import match

HOLD_BELOW = 0.7
"""Those that wait are taken from below this quantile of the lengths."""
SHORT, MIDDLING, LONG = 2.0, 1.0, 1.75
"""How much a millisecond of waiting counts for those that should start first, those that should wait, the others."""
PACK = 1.2
"""Two prompts share a pass if what that delays them by is less than so many times what the shorter one takes."""
LEAST_WAIT_MS = 5.0
IDLE_WAIT_MS = 50.0  # for a worker that is free, where everybody could start at once
NEVER = 1e9  # ms; a cost that stands for "cannot"

_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Burst:
    """Requests by the order they should go in if there were one worker. All times in milliseconds."""

    work: list[float]  # to compute each prompt, as it could be best; (n,)
    waited: list[float]  # so far; whoever waited longer waits less for a worker that suits it better; (n,)
    costs: _Floats  # of starting each at each worker at once; NEVER where it cannot; (n, workers)
    is_free: NDArray[np.bool_]  # (workers,)
    free_in: _Floats  # until each worker has computed what it has; (workers,)
    pass_ms: float  # what a pass takes besides its tokens: prompts that share one save it


def choose(burst: Burst) -> list[tuple[int, int]]:
    """Return (request, worker) of those that start now. Several requests of one worker share its next pass.

    There is at least one free worker, and at most twice as many requests as free workers.
    """
    free = np.flatnonzero(burst.is_free)
    units = _pack(burst, len(free))
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


def _pack(burst: Burst, num_free: int) -> list[list[int]]:
    """Return the requests one by one, but pairs of the shortest together as long as there are too many."""
    work = burst.work
    units = [[request] for request in range(len(work))]
    at = 0
    while len(units) > num_free and at + 1 < len(units):
        first, second = work[units[at][0]], work[units[at + 1][0]]
        if first + second - 2 * burst.pass_ms >= PACK * first:
            break
        units[at : at + 2] = [units[at] + units[at + 1]]
        at += 1
    return units


def _weights(num_units: int, num_held: int) -> _Floats:
    weights = np.full(num_units, LONG)
    begin = max(num_held, min(num_units - num_held, round(HOLD_BELOW * num_units) - num_held))
    weights[begin : begin + num_held] = MIDDLING
    weights[:num_held] = SHORT
    return weights
