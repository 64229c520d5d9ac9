"""What the frontends of a deployment counted, kept so that each can show the sum: clients reach any one of them."""

from __future__ import annotations

from hpcserve.observability.samples import Samples, total, without_gauges


class MetricsSum:
    """The newest samples of each frontend, by its pid: all are the head's children. Counts outlive who made them."""

    def __init__(self) -> None:
        self._newest: dict[int, Samples] = {}

    def take(self, pid: int, samples: Samples) -> None:
        """Replace what a frontend said last."""
        self._newest[pid] = samples

    def leave(self, pid: int) -> None:
        """Its connection has ended: what it said of the present is over. It may come back and go on counting."""
        self._newest[pid] = without_gauges(self._newest.get(pid, {}))

    def others_than(self, pid: int) -> Samples:
        """Return what all others counted since the head started."""
        return total(each for who, each in self._newest.items() if who != pid)
