"""Policy `least_loaded`: whoever has least to do. It does not look at prefixes."""

from __future__ import annotations

from collections.abc import Sequence

from hpcserve.router.policies.base import Candidate, Turns
from hpcserve.types import RouteRequest, WorkerId


class LeastLoaded:
    """Fewest requests on decoding workers, fewest queued tokens on prefill workers; then in turn."""

    def __init__(self) -> None:
        self._turns = Turns()

    def choose(self, candidates: Sequence[Candidate], request: RouteRequest) -> WorkerId:
        """Return the candidate of the lowest load."""
        return self._turns.lowest(candidates, lambda c: c.load)

    def forget(self, worker: WorkerId) -> None:
        """Drop its turn."""
        self._turns.forget(worker)
