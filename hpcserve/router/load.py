"""What is booked on each worker: placed by the router, not yet released. Reports of the engines stand beside it.

Bookings are exact for what this router placed; reports are late but know what an earlier router placed. What a report
shows beyond the bookings at the time it came in counts as load too, until the next report.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hpcserve.router.stats import WorkerLoad
from hpcserve.types import LoadReport, RequestId, WorkerId


@dataclass
class Booking:
    """One request on one worker."""

    prefill_tokens: int  # to compute here before its first token
    blocks: int  # that its prompt adds here


@dataclass
class Load:
    """One worker's bookings, with their running sums."""

    bookings: dict[RequestId, Booking] = field(default_factory=dict)
    num_queued: int = 0  # requests placed here whose prompts wait to be computed
    prefill_tokens: int = 0
    blocks: int = 0
    report: LoadReport | None = None
    unbooked_requests: int = 0
    unbooked_prefill_tokens: int = 0

    @property
    def num_requests(self) -> int:
        """Requests placed here, by this router or as far as reported by another."""
        return len(self.bookings) + self.unbooked_requests

    @property
    def queued_tokens(self) -> int:
        """Prompt tokens that wait to be computed here."""
        return self.prefill_tokens + self.unbooked_prefill_tokens


class LoadBook:
    """The loads of all workers. Releasing what is not booked is harmless, so no sum ever falls below zero."""

    def __init__(self) -> None:
        self._loads: dict[WorkerId, Load] = {}

    def open(self, worker: WorkerId) -> None:
        """Keep a load for `worker`; one that is kept already stays as it is."""
        self._loads.setdefault(worker, Load())

    def close(self, worker: WorkerId) -> None:
        """Forget `worker` with everything booked on it."""
        self._loads.pop(worker, None)

    def of(self, worker: WorkerId) -> Load:
        """Return the load of `worker`, which must be open. Not to be changed by the caller."""
        return self._loads[worker]

    def book(self, worker: WorkerId, request_id: RequestId, *, prefill_tokens: int, blocks: int) -> None:
        """Place a request on an open worker; one that is there already is placed anew."""
        self.release(worker, request_id)
        load = self._loads[worker]
        load.bookings[request_id] = Booking(prefill_tokens, blocks)
        load.num_queued += prefill_tokens > 0
        load.prefill_tokens += prefill_tokens
        load.blocks += blocks

    def prefill_done(self, worker: WorkerId, request_id: RequestId) -> None:
        """The request's prompt is computed: it queues no more tokens, but keeps its blocks."""
        load = self._loads.get(worker)
        booking = load.bookings.get(request_id) if load else None
        if load and booking:
            load.num_queued -= booking.prefill_tokens > 0
            load.prefill_tokens -= booking.prefill_tokens
            booking.prefill_tokens = 0

    def release(self, worker: WorkerId, request_id: RequestId) -> None:
        """The request is gone from `worker`."""
        load = self._loads.get(worker)
        booking = load.bookings.pop(request_id, None) if load else None
        if load and booking:
            load.num_queued -= booking.prefill_tokens > 0
            load.prefill_tokens -= booking.prefill_tokens
            load.blocks -= booking.blocks

    def report(self, worker: WorkerId, report: LoadReport) -> None:
        """Take what an engine measured. Reports of unknown workers are ignored."""
        load = self._loads.get(worker)
        if load is None:
            return
        load.report = report
        load.unbooked_requests = max(0, report.num_running + report.num_waiting - len(load.bookings))
        load.unbooked_prefill_tokens = (
            max(0, report.waiting_tokens - load.prefill_tokens) if load.unbooked_requests else 0
        )

    def view(self, worker: WorkerId, indexed_blocks: int) -> WorkerLoad:
        """Return the load of an open worker as a value."""
        load = self._loads[worker]
        return WorkerLoad(
            num_requests=len(load.bookings),
            queued_prefill_tokens=load.prefill_tokens,
            active_blocks=load.blocks,
            unbooked_requests=load.unbooked_requests,
            unbooked_prefill_tokens=load.unbooked_prefill_tokens,
            indexed_blocks=indexed_blocks,
            report=load.report,
        )
