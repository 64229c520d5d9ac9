"""When to give up on a service that answers nothing, and how long to wait before asking again. Asks nobody."""

from __future__ import annotations

import time

from hpcserve.errors import DeploymentError

FIRST_DELAY_S = 0.5
_MAX_DELAY_S = 30.0
_SPREAD = 0.618034  # of delays, so that those who failed together do not come back together


class Silence:
    """For how long nothing at all was answered."""

    def __init__(self, name: str, limit_s: float) -> None:
        """`name` is what the service is called."""
        self._name = name
        self._limit_s = limit_s
        self._since: float | None = None  # None: what was heard last was an answer

    def end(self) -> None:
        """There was an answer."""
        self._since = None

    def check(self, reason: str) -> None:
        """There is no answer now, and why. Raises `DeploymentError` when there was none for too long."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
        silence_s = now - self._since
        if silence_s > self._limit_s:
            raise DeploymentError(f"{self._name} has answered nothing for {silence_s:.0f} s ({reason})")


def delay_s(number: int, failures: int) -> float:
    """Return how long to wait after so many failures, the first of them 1: doubled each time, apart from others."""
    return min(_MAX_DELAY_S, FIRST_DELAY_S * 2.0 ** min(failures - 1, 10)) * spread(number)


def spread(number: int) -> float:
    """Return a factor from 0.5 to 1.5, another one for each number."""
    return 0.5 + (number * _SPREAD) % 1.0
