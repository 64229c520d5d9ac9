"""What a router knows beyond its counters: the work that came and that waits, and how fast workers are. Reads only."""

from __future__ import annotations

from hpcserve.router.load import LoadBook
from hpcserve.router.placement import Placement
from hpcserve.router.rates import Rates
from hpcserve.router.stats import Counts, Offered
from hpcserve.router.timing import Timing
from hpcserve.router.waiting import WaitingRoom
from hpcserve.types import WorkerId


class Outlook:
    """One router's, for whoever plans."""

    def __init__(
        self, counts: Counts, waiting: WaitingRoom, placement: Placement, book: LoadBook, rates: Rates
    ) -> None:
        self._counts = counts
        self._waiting = waiting
        self._placement = placement
        self._book = book
        self._rates = rates

    @property
    def offered(self) -> Offered:
        """What ever came."""
        return self._counts.offered

    @property
    def waiting_ms(self) -> float:
        """To compute the prompts of those for which no worker was chosen, those of batches left out. Policy `kv`."""
        return self._waiting.work_ms

    @property
    def wants_room(self) -> bool:
        """Whether some of those wait for KV blocks or a sequence of a decode worker, with a prefill worker free."""
        return self._placement.wants_room and bool(len(self._waiting))

    def queued_ms(self, worker: WorkerId) -> float:
        """Return how long a known worker computes the prompts that are placed there, as predicted."""
        return self._rates.of(worker).prefill_ms(self._book.of(worker).queued_tokens)

    def timing_of(self, worker: WorkerId) -> Timing:
        """Return what a worker's speed is predicted by."""
        return self._rates.of(worker)
