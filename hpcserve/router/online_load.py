"""How much of the workers online requests need, by what came lately. Pure; the caller's clock.

Taken for offered load in the sense of A. K. Erlang: requests that come at random, each of which occupies one worker for
as long as its prompt takes to compute.
"""

from __future__ import annotations

from math import exp

_MEMORY_S = 20.0
_LEAST_S = 1.0  # from which the load is told: one request is no load yet
_STEP_SHARE = 1.25  # of a prompt's own time that it occupies a worker: others decode in the same steps
MOST_BLOCKED = 0.05
"""Of online requests that may find all workers that are kept for them computing: well under one in ten, as latencies
are promised for nine of ten."""


class OnlineLoad:
    """Work that came, the older the less it counts."""

    def __init__(self) -> None:
        self._work_s = 0.0
        self._at: float | None = None
        self._began_at = 0.0  # when the first came, after a time without any

    def note(self, work_ms: float, now: float) -> None:
        """A request came whose prompt takes so long to compute."""
        since_s = self.since(now)
        if since_s is None or since_s > _MEMORY_S:
            self._work_s, self._began_at = 0.0, now
        self._work_s = self._faded(now) + _STEP_SHARE * work_ms / 1000
        self._at = now

    def since(self, now: float) -> float | None:
        """Return how many seconds ago the last one came; None if none ever did."""
        return None if self._at is None else now - self._at

    def num_needed(self, now: float) -> int:
        """Return how many workers have to be kept for such requests, so that few find all of them computing."""
        offered = self._offered(now)
        num, blocked = 0, 1.0
        while blocked > MOST_BLOCKED:
            num += 1
            blocked = offered * blocked / (num + offered * blocked)
        return num

    def _offered(self, now: float) -> float:
        """Return how many workers are computing at a time, on average; of a short while, what that while tells."""
        remembered_s = max(_LEAST_S, _MEMORY_S * (1 - exp(-max(0.0, now - self._began_at) / _MEMORY_S)))
        return self._faded(now) / remembered_s

    def _faded(self, now: float) -> float:
        if self._at is None:
            return 0.0
        return self._work_s * exp(-max(0.0, now - self._at) / _MEMORY_S)
