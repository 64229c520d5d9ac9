"""Requests that wait for the router, seen from those who asked: one future each, and the occasions to place them.

Who waits, in what order and where they go is the router's. Here is when it is asked: once a turn of the event loop in
which something has changed, so that requests that arrive together are placed together.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hpcserve.comm.protocol import Held
from hpcserve.errors import HpcserveError, Overloaded, RateLimited, Unavailable
from hpcserve.router.router import Router
from hpcserve.types import Assignment, RequestId, RouteRequest

log = logging.getLogger(__name__)

_TICK_S = 1.0  # while somebody waits
_RETRY_EXPIRED_S = 10.0


@dataclass(frozen=True)
class _Call:
    """One request that waits, and who is told."""

    answer: asyncio.Future[Assignment]
    was_under_way: bool


class Assigner:
    """The one caller of the router's queue. All methods are called on the head's event loop."""

    def __init__(
        self,
        router: Router,
        max_wait_s: float,
        *,
        on_placed: Callable[[Sequence[Assignment]], None],
        on_tick: Callable[[], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`max_wait_s` is what the router lets requests wait for.

        `on_placed` is called before those who asked are told. `on_tick` is called once a second while somebody waits,
        and once more when nobody does any more.
        """
        self._router = router
        self._max_wait_s = max_wait_s
        self._on_placed = on_placed
        self._on_tick = on_tick
        self._clock = clock
        self._calls: dict[RequestId, _Call] = {}
        self._placing: asyncio.Handle | None = None
        self._ticking: asyncio.TimerHandle | None = None
        self._is_refusing = False

    def assign(self, route: RouteRequest) -> asyncio.Future[Assignment]:
        """Have a request wait for its assignment, which is then held until `release`.

        Raises `Unavailable`, `Overloaded` or `RateLimited` if it may not wait; the future raises the first two if it
        has to wait no more. It is cancelled on `release`.
        """
        if self._is_refusing and not route.exclude:
            raise Unavailable("the deployment is going down")
        self.release(route.request_id)
        self._submit(route)
        answer: asyncio.Future[Assignment] = asyncio.get_running_loop().create_future()
        self._calls[route.request_id] = _Call(answer, was_under_way=bool(route.exclude))
        self.reconsider()
        return answer

    def restore(self, held: Held) -> None:
        """Book a request that runs where an earlier head assigned it; it is held until `release`."""
        self._router.restore(held.assignment, held.num_tokens, is_prefilled=held.is_prefilled)

    def prefilled(self, request_id: RequestId) -> None:
        """The prompt of a request is computed."""
        self._router.prefill_done(request_id)
        self.reconsider()

    def release(self, request_id: RequestId) -> None:
        """A request has ended, wherever it was. Unknown ids are ignored."""
        self._router.release(request_id)
        call = self._calls.pop(request_id, None)
        if call is not None:
            call.answer.cancel()
        self.reconsider()

    def note_output(self, num_tokens: int) -> None:
        """A request came to its end with so many tokens generated: others are likely to do the same."""
        self._router.lasting.lengths.note(num_tokens)

    def reconsider(self) -> None:
        """Something has changed that may let one start: place those that can, later in this turn of the loop."""
        if not self._router.num_waiting + self._router.num_backfilling:
            return
        self._keep_ticking()
        if self._placing is None:
            self._placing = asyncio.get_running_loop().call_soon(self._place)

    def refuse(self) -> None:
        """The deployment goes down: take nothing new, and keep nobody waiting but those that were under way."""
        self._is_refusing = True
        for request_id in [each for each, call in self._calls.items() if not call.was_under_way]:
            self._fail(request_id, Unavailable("the deployment is going down"))

    def close(self) -> None:
        """Do nothing more."""
        for handle in (self._placing, self._ticking):
            if handle is not None:
                handle.cancel()

    def _submit(self, route: RouteRequest) -> None:
        try:
            self._router.submit(route, self._clock())
        except (Overloaded, RateLimited):
            if self._placing is None:
                raise
            self._placing.cancel()
            self._place()  # who arrived in this turn may fill the queue only because nobody was placed yet
            self._router.submit(route, self._clock())

    def _place(self) -> None:
        self._placing = None
        placed = self._router.place(self._clock())
        self._on_placed(placed)
        for assignment in placed:
            call = self._calls.pop(assignment.request_id, None)
            if call is None or call.answer.done():
                log.debug("nobody waits for the assignment of %s any more", assignment.request_id)
                self.release(assignment.request_id)
            else:
                call.answer.set_result(assignment)
                log.debug("%s goes to %s", assignment.request_id, assignment.decode)

    def _keep_ticking(self) -> None:
        if self._ticking is None:
            self._ticking = asyncio.get_running_loop().call_later(_TICK_S, self._tick)

    def _tick(self) -> None:
        self._ticking = None
        for request_id in self._router.expire(self._clock()):
            message = f"no worker had its hands free for {self._max_wait_s:g} s (router.queue.max_wait_s)"
            self._fail(request_id, Overloaded(f"{message}; try again later", retry_after_s=_RETRY_EXPIRED_S))
        self.reconsider()
        self._on_tick()

    def _fail(self, request_id: RequestId, error: HpcserveError) -> None:
        call = self._calls.pop(request_id, None)
        self._router.release(request_id)
        if call is not None and not call.answer.done():
            call.answer.set_exception(error)
