"""Requests of batches that wait for the router, and which of them may start: the rest of what online ones leave.

They wait in a room of their own, where waiting is no failure: nobody of them is refused for waiting long. None starts
while an online request waits. While there is online traffic, one worker at least is kept with its hands free, as far
as batches go, so that whoever comes finds it.
"""

from __future__ import annotations

from hpcserve.config.models import QueueConfig
from hpcserve.errors import Unavailable
from hpcserve.router.backfill import QUIET_S, BackfillRule, Occupied
from hpcserve.router.fleet import Fleet
from hpcserve.router.load import LoadBook
from hpcserve.router.placement import Choice, Placement
from hpcserve.router.waiting import WaitingRoom
from hpcserve.types import RequestId, Role, RouteRequest, WorkerInfo

_MOST_WAITING = 100_000
_KEPT_FREE = 0.25  # of the workers that compute prompts, but at least one


class Backfilling:
    """The queue of one router's batches. It books nothing: whoever takes a choice does, before it asks for the next."""

    def __init__(
        self, rule: BackfillRule, queue: QueueConfig, fleet: Fleet, book: LoadBook, placement: Placement
    ) -> None:
        self._rule = rule
        self._fleet = fleet
        self._book = book
        self._placement = placement
        most = {"max_requests": _MOST_WAITING, "max_requests_per_tenant": None}
        self._waiting = WaitingRoom(queue.model_copy(update=most), is_fcfs=True)
        self._online_at: float | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def takes(self, request: RouteRequest) -> bool:
        """Whether it is a request of a batch."""
        return self._rule.holds_for(request.priority)

    def note_online(self, now: float) -> None:
        """An online request came."""
        self._online_at = now

    def add(self, request: RouteRequest, now: float) -> None:
        """Let a request wait. Raises `Unavailable` without a READY worker, `Overloaded` if far too many wait."""
        decoders = self._fleet.decoders((), now)
        self._waiting.check(request, len(decoders))
        self._waiting.add(request, 0.0, now)

    def remove(self, request_id: RequestId, *, is_placed: bool = False) -> None:
        """Let a request wait no more. Unknown ids are ignored."""
        self._waiting.remove(request_id, is_placed=is_placed)

    def next(self, now: float) -> Choice | None:
        """Return where the next one starts; None if it has to wait."""
        due = self._waiting.next(1)
        if not due:
            return None
        request = due[0].request
        try:
            decoders = self._fleet.decoders(request.exclude, now)
        except Unavailable:
            return None
        prefillers = self._fleet.prefillers(request.exclude, now)
        is_split = bool(prefillers) and any(info.role is Role.DECODE for info in decoders)
        is_quiet = self._online_at is None or now - self._online_at > QUIET_S
        computing = self._with_hands(prefillers if is_split else decoders, request.num_tokens, is_quiet=is_quiet)
        if not is_split:
            return self._placement.choose_among(request, computing, prefillers) if computing else None
        able = [info for info in decoders if self._has_room(info, 0, is_quiet=is_quiet)]
        return self._placement.choose_among(request, able, computing) if able and computing else None

    def _with_hands(self, workers: list[WorkerInfo], num_tokens: int, *, is_quiet: bool) -> list[WorkerInfo]:
        """Return who may be given a prompt to compute, without those kept free for online requests."""
        able = [info for info in workers if self._has_room(info, num_tokens, is_quiet=is_quiet)]
        if is_quiet or len(workers) == 1:
            return able
        num_free = sum(not self._book.of(info.worker).num_queued for info in workers)
        if num_free > max(1, _KEPT_FREE * len(workers)):
            return able
        return [info for info in able if self._book.of(info.worker).num_queued]

    def _has_room(self, info: WorkerInfo, num_tokens: int, *, is_quiet: bool) -> bool:
        load, engine = self._book.of(info.worker), info.engine
        booked = load.blocks / engine.num_kv_blocks if engine and engine.num_kv_blocks > 0 else 0.0
        reported = load.report.kv_usage if load.report else 0.0
        occupied = Occupied(load.num_requests, load.queued_tokens, max(booked, reported))
        return self._rule.has_room(engine, occupied, num_tokens, is_quiet=is_quiet)
