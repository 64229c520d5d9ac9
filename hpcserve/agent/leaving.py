"""How a worker that has to be gone by a given moment gets rid of what it runs. It decides who moves, and when.

A request that is likely to end in time may; the others are handed over at once, a few at a time, as long as there is
somebody to take them; and at the last moment all are. The rest is the dispatcher's: it has them assigned anew.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from hpcserve.agent.data_plane import DataPlane
from hpcserve.agent.streams import Stream
from hpcserve.config.models import Config

log = logging.getLogger(__name__)

_LOOK_S = 0.25
_NUM_AT_ONCE = 8  # each holds its blocks here until they were fetched
_SURE_SHARE = 0.8  # of the time left: who is likely to end within may stay
_PATIENCE_SHARE = 0.5  # of all the time: a prompt that is being computed is not thrown away before
_PART_TIMEOUT_S = 10.0
_TAKEN_TIMEOUT_S = 10.0


def when_to_leave(told: float | None, ends_at: float | None, config: Config, now: float) -> float:
    """Return the Unix time by which all is handed over: as told, else the drain's bound; and before the job ends."""
    leave_at = now + config.cluster.drain_timeout_s if told is None else told
    return leave_at if ends_at is None else min(leave_at, ends_at - config.renewal.leave_s)


class Leaving:
    """Empties one data plane, once."""

    def __init__(
        self,
        plane: DataPlane,
        has_taker: Callable[[], Awaitable[bool]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`has_taker` says whether another worker could go on with what runs here."""
        self._plane = plane
        self._has_taker = has_taker
        self._clock = clock
        self._parting: dict[Stream, asyncio.Task[None]] = {}
        self.num_moved = 0

    async def run(self, leave_at: float) -> bool:
        """Return when nothing runs and all KV was fetched; False if some requests or some KV had to be left behind.

        `leave_at` is a Unix time: from then on nothing runs here, and KV is kept for some seconds more.
        """
        began = self._clock()
        patience_until = began + (leave_at - began) * _PATIENCE_SHARE
        try:
            while self._clock() < leave_at and not await self._plane.drained(0):
                if await self._has_taker():
                    self._move_who_stays_too_long(leave_at, is_patient=self._clock() < patience_until)
                await self._plane.drained(min(_LOOK_S, max(0.0, leave_at - self._clock())))
            self._move(list(self._plane.streams), most=None)
            all_left = await self._plane.drained(_PART_TIMEOUT_S)
            return await self._plane.all_taken(_TAKEN_TIMEOUT_S) and all_left
        finally:
            for task in self._parting.values():
                task.cancel()

    def _move_who_stays_too_long(self, leave_at: float, *, is_patient: bool) -> None:
        left_s = (leave_at - self._clock()) * _SURE_SHARE
        long = [stream for stream in self._plane.streams if not stream.ends_within(left_s)]
        self._move([stream for stream in long if stream.has_begun or not is_patient], most=_NUM_AT_ONCE)

    def _move(self, streams: list[Stream], *, most: int | None) -> None:
        for stream in streams:
            if most is not None and len(self._parting) >= most:
                return
            if stream not in self._parting and not stream.has_ended:
                self._parting[stream] = task = asyncio.create_task(self._plane.part(stream))
                task.add_done_callback(lambda _, stream=stream: self._gone(stream))  # type: ignore[misc]

    def _gone(self, stream: Stream) -> None:
        self.num_moved += 1
        self._parting.pop(stream, None)
