"""Policy `round_robin`: everybody in turn, whatever the load."""

from __future__ import annotations

from collections.abc import Sequence

from hpcserve.router.policies.base import Candidate, Turns
from hpcserve.types import RouteRequest, WorkerId


class RoundRobin:
    """The candidate whose last turn was longest ago."""

    def __init__(self) -> None:
        self._turns = Turns()

    def choose(self, candidates: Sequence[Candidate], request: RouteRequest) -> WorkerId:
        """Return the next in turn."""
        return self._turns.lowest(candidates, lambda _: 0)

    def forget(self, worker: WorkerId) -> None:
        """Drop its turn."""
        self._turns.forget(worker)
