"""What is booked on each worker: placed by the router, not yet released. Reports of the engines stand beside it.

Bookings are exact for what this router placed; reports are late but know what an earlier router placed. What a report
shows beyond the bookings at the time it came in counts as load too, until the next report.

A report may be wrong, so it is not believed without bounds. It never takes anything from the bookings: who claims to be
idle attracts no more than an idle worker that tells the truth. What it shows beyond them counts for at most what the
engine has room for (`max_num_seqs` requests, one KV cache of prompt tokens), and as an earlier router's requests end
sooner or later, it fades: once a worker has shown more than is booked for `FADES_AFTER_S` without a break, it counts
for half as much with each `HALF_LIFE_S` more, also if no report comes any more. So whoever claims a load that never
falls gets few requests for some minutes, and then its share.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from hpcserve.router.stats import WorkerLoad
from hpcserve.types import EngineInfo, LoadReport, RequestId, WorkerId

FADES_AFTER_S = 60.0
HALF_LIFE_S = 60.0
MOST_REQUESTS = 1024
MOST_TOKENS = 1 << 20
"""No engine is believed to have room for more of either than this; also taken where it does not say."""
_TICK_S = 1.0  # fading is reckoned anew so often


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
    computed_at: float = 0.0  # when those will be computed, as predicted when they were placed
    prefill_tokens: int = 0
    blocks: int = 0
    report: LoadReport | None = None
    most_requests: int = MOST_REQUESTS
    most_tokens: int = MOST_TOKENS
    excess_requests: int = 0  # in the last report beyond the bookings, as far as there is room
    excess_tokens: int = 0
    excess_since: float | None = None  # when the first of the reports in a row came that showed some
    unbooked_requests: int = 0  # what the excess counts for now
    unbooked_prefill_tokens: int = 0

    @property
    def num_requests(self) -> int:
        """Requests placed here, by this router or as far as reported by another."""
        return len(self.bookings) + self.unbooked_requests

    @property
    def queued_tokens(self) -> int:
        """Prompt tokens that wait to be computed here."""
        return self.prefill_tokens + self.unbooked_prefill_tokens

    def unqueue(self, booking: Booking) -> None:
        """The prompt of `booking` waits no more."""
        self.num_queued -= booking.prefill_tokens > 0
        self.prefill_tokens -= booking.prefill_tokens
        if not self.num_queued:
            self.computed_at = 0.0

    def take(self, report: LoadReport) -> None:
        """Put the report's excess over the bookings in place of the last one's."""
        excess = max(0, report.num_running) + max(0, report.num_waiting) - len(self.bookings)
        self.report = report
        self.excess_requests = min(max(0, excess), self.most_requests)
        self.excess_tokens = min(max(0, report.waiting_tokens - self.prefill_tokens), self.most_tokens)
        if not self.excess_requests:
            self.excess_tokens = 0
            self.excess_since = None

    def fade(self, now: float | None) -> None:
        """Reckon what the excess counts for at `now`; in full while that is not known."""
        if self.excess_requests and self.excess_since is None:
            self.excess_since = now
        age_s = 0.0 if now is None or self.excess_since is None else now - self.excess_since
        weight = 0.5 ** (max(0.0, age_s - FADES_AFTER_S) / HALF_LIFE_S)
        self.unbooked_requests = round(self.excess_requests * weight)
        self.unbooked_prefill_tokens = round(self.excess_tokens * weight)


class LoadBook:
    """The loads of all workers. Releasing what is not booked is harmless, so no sum ever falls below zero."""

    def __init__(self) -> None:
        self._loads: dict[WorkerId, Load] = {}
        self._now: float | None = None  # of the caller's clock, when it was last told
        self._fades_at = -inf  # the next time

    def open(self, worker: WorkerId, engine: EngineInfo | None = None) -> None:
        """Keep a load for `worker`; one that is kept already stays as it is. `engine` says what there is room for."""
        load = self._loads.setdefault(worker, Load())
        if engine is not None:
            load.most_requests = _within(engine.max_num_seqs or 0, MOST_REQUESTS)
            load.most_tokens = _within(engine.num_kv_blocks * engine.block_size, MOST_TOKENS)

    def close(self, worker: WorkerId) -> None:
        """Forget `worker` with everything booked on it."""
        self._loads.pop(worker, None)

    def of(self, worker: WorkerId) -> Load:
        """Return the load of `worker`, which must be open. Not to be changed by the caller."""
        return self._loads[worker]

    def tick(self, now: float) -> None:
        """It is `now`, in seconds of a clock that does not fall: what reports show beyond the bookings grows old."""
        self._now = now
        if now >= self._fades_at:
            self._fades_at = now + _TICK_S
            for load in self._loads.values():
                if load.excess_requests:
                    load.fade(now)

    def book(self, worker: WorkerId, request_id: RequestId, *, prefill_tokens: int, blocks: int) -> None:
        """Place a request on an open worker; one that is there already is placed anew."""
        self.release(worker, request_id)
        load = self._loads[worker]
        load.bookings[request_id] = Booking(prefill_tokens, blocks)
        load.num_queued += prefill_tokens > 0
        load.prefill_tokens += prefill_tokens
        load.blocks += blocks

    def expect(self, worker: WorkerId, work_s: float, now: float) -> None:
        """What was placed last takes so long to compute, once what is queued already has been."""
        load = self._loads[worker]
        load.computed_at = max(load.computed_at, now) + work_s

    def prefill_done(self, worker: WorkerId, request_id: RequestId) -> None:
        """The request's prompt is computed: it queues no more tokens, but keeps its blocks."""
        load = self._loads.get(worker)
        booking = load.bookings.get(request_id) if load else None
        if load and booking:
            load.unqueue(booking)
            booking.prefill_tokens = 0

    def release(self, worker: WorkerId, request_id: RequestId) -> None:
        """The request is gone from `worker`."""
        load = self._loads.get(worker)
        booking = load.bookings.pop(request_id, None) if load else None
        if load and booking:
            load.unqueue(booking)
            load.blocks -= booking.blocks

    def report(self, worker: WorkerId, report: LoadReport) -> None:
        """Take what an engine measured. Reports of unknown workers are ignored."""
        load = self._loads.get(worker)
        if load is not None:
            load.take(report)
            load.fade(self._now)

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


def _within(claimed: int, most: int) -> int:
    return claimed if 0 < claimed < most else most
