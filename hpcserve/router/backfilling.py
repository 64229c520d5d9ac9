"""Requests of batches that wait for the router, and which of them may start: the rest of what online ones leave.

They wait in a room of their own, where waiting is no failure: nobody of them is refused for waiting long. None starts
while an online request waits. As many workers as online requests need are kept free of them, and the others are theirs
up to a share; where online requests need all workers, one of these takes a few.
"""

from __future__ import annotations

from collections import Counter

from hpcserve.config.models import QueueConfig
from hpcserve.errors import Unavailable
from hpcserve.router.backfill import QUIET_S, BackfillRule, Occupied
from hpcserve.router.fleet import Fleet
from hpcserve.router.load import LoadBook
from hpcserve.router.online_load import OnlineLoad
from hpcserve.router.placement import Choice, Placement
from hpcserve.router.waiting import WaitingRoom
from hpcserve.types import RequestId, Role, RouteRequest, WorkerId, WorkerInfo

_MOST_WAITING = 100_000


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
        self._online = OnlineLoad()
        self._on: dict[RequestId, WorkerId] = {}  # where those decode that were taken
        self._num_on: Counter[WorkerId] = Counter()

    def __len__(self) -> int:
        return len(self._waiting)

    def takes(self, request: RouteRequest) -> bool:
        """Whether it is a request of a batch."""
        return self._rule.holds_for(request.priority)

    def note_online(self, work_ms: float, now: float) -> None:
        """An online request came, whose prompt takes so long to compute."""
        self._online.note(work_ms, now)

    def add(self, request: RouteRequest, num_workers: int, now: float) -> None:
        """Let a request wait for one of so many workers. Raises `Overloaded` if far too many wait."""
        self._waiting.check(request, num_workers)
        self._waiting.add(request, 0.0, now)

    def take(self, choice: Choice) -> None:
        """A request that waited runs now, as `next` said."""
        request_id = choice.request.request_id
        self._waiting.remove(request_id, is_placed=True)
        self._on[request_id] = choice.decode
        self._num_on[choice.decode] += 1

    def remove(self, request_id: RequestId) -> None:
        """A request has ended, or waits no more. Unknown ids are ignored."""
        self._waiting.remove(request_id)
        worker = self._on.pop(request_id, None)
        if worker is not None:
            self._num_on[worker] -= 1
            if not self._num_on[worker]:
                del self._num_on[worker]

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
        computing = prefillers if is_split else decoders
        num_spare = self._num_spare(len(computing), now)
        theirs = self._theirs(computing, num_spare, request.num_tokens, num_spare)
        if is_split:
            share = num_spare * len(decoders) // len(computing)
            decoders, prefillers = self._theirs(decoders, share, 0, num_spare), theirs
        else:
            decoders = theirs
        return self._placement.choose_among(request, decoders, prefillers, now) if decoders and theirs else None

    def _num_spare(self, num_workers: int, now: float) -> int:
        """Return how many of those that compute prompts online requests do not need; at times fewer than none."""
        since_s = self._online.since(now)
        is_quiet = since_s is None or since_s > QUIET_S
        return num_workers - (0 if is_quiet else self._online.num_needed(now))

    def _theirs(self, workers: list[WorkerInfo], num: int, num_tokens: int, num_spare: int) -> list[WorkerInfo]:
        """Return those of the `num` workers that batches may have, and of one in any case, that have room."""
        theirs = sorted(workers, key=self._belongs_to_batches, reverse=True)[: max(1, num)]
        return [info for info in theirs if self._has_room(info, num_tokens, is_quiet=num_spare > 0)]

    def _belongs_to_batches(self, info: WorkerInfo) -> tuple[int, int]:
        """Order workers by how little online requests have of them: batches stay where they are."""
        num_offline = self._num_on[info.worker]
        return num_offline, num_offline - self._book.of(info.worker).num_requests

    def _has_room(self, info: WorkerInfo, num_tokens: int, *, is_quiet: bool) -> bool:
        load, engine = self._book.of(info.worker), info.engine
        booked = load.blocks / engine.num_kv_blocks if engine and engine.num_kv_blocks > 0 else 0.0
        reported = load.report.kv_usage if load.report else 0.0
        occupied = Occupied(
            num_requests=load.num_requests,
            num_offline=len(self._on),
            queued_tokens=load.queued_tokens,
            kv_share=max(booked, reported),
        )
        return self._rule.has_room(engine, occupied, num_tokens, is_quiet=is_quiet)
