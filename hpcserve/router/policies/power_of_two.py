"""Policy `power_of_two`: of two workers drawn at random, the one with less to do. It does not look at prefixes.

Nearly as even as asking everybody, and it does not send a burst of requests to whoever reported the lowest load last.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random as Generator

from hpcserve.router.policies.base import Candidate
from hpcserve.types import RouteRequest, WorkerId


class PowerOfTwo:
    """Two different candidates, the lower load; of equals the one drawn first. The same seed draws the same."""

    def __init__(self, seed: int) -> None:
        self._generator = Generator(seed)  # noqa: S311  # a reproducible choice, not a secret

    def choose(self, candidates: Sequence[Candidate], request: RouteRequest) -> WorkerId:
        """Return the better of two."""
        drawn = self._generator.sample(candidates, min(2, len(candidates)))
        return min(drawn, key=lambda c: c.load).worker

    def forget(self, worker: WorkerId) -> None:
        """Nothing is remembered."""
