"""Which workers have fallen silent: agents say something every second, and one that is frozen or cut off does not."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from hpcserve.types import WorkerId

SILENT_S = 5.0
"""Without a word, then a worker's requests are moved."""
_STALL_S = 2.0  # between two looks; then it was the head that did not listen


@dataclass
class Silence:
    """Remembers when each worker was last heard. A head that stalled blames nobody for it."""

    clock: Callable[[], float]
    _heard_at: dict[WorkerId, float] = field(default_factory=dict)
    _looked_at: float | None = None

    def hear(self, worker: WorkerId) -> None:
        """Take in a sign of life."""
        self._heard_at[worker] = self.clock()

    def forget(self, worker: WorkerId) -> None:
        """Forget a worker that is over."""
        self._heard_at.pop(worker, None)

    def silent_for_s(self, worker: WorkerId) -> float:
        """Return for how long a worker has said nothing; 0 for one that never said anything."""
        return self.clock() - self._heard_at.get(worker, self.clock())

    def look(self, workers: Iterable[WorkerId]) -> list[WorkerId]:
        """Return those that have been silent for too long. To be called every second."""
        now = self.clock()
        missed_s = 0.0 if self._looked_at is None else now - self._looked_at
        self._looked_at = now
        if missed_s > _STALL_S:
            self._heard_at = {worker: min(now, at + missed_s) for worker, at in self._heard_at.items()}
        return [worker for worker in workers if self.silent_for_s(worker) > SILENT_S]
