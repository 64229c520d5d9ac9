"""What is known of each worker's speed. It predicts nothing itself: `Timing` does, with what was learned."""

from __future__ import annotations

from hpcserve.router.timing import Timing
from hpcserve.types import LoadReport, WorkerId


class Rates:
    """A `Timing` for every worker; `prior` holds until something is known."""

    def __init__(self, prior: Timing) -> None:
        self._prior = prior
        self._timings: dict[WorkerId, Timing] = {}

    def of(self, worker: WorkerId) -> Timing:
        """Return what to predict `worker` by; the prior for unknown ones."""
        return self._timings.get(worker, self._prior)

    def open(self, worker: WorkerId, pool: str) -> None:
        """Begin to learn about `worker`; what is known of it already stays."""
        self._timings.setdefault(worker, self._prior)

    def close(self, worker: WorkerId) -> None:
        """Forget `worker`."""
        self._timings.pop(worker, None)

    def report(self, worker: WorkerId, report: LoadReport) -> None:
        """Learn from what an engine measured. Reports of unknown workers are ignored."""
