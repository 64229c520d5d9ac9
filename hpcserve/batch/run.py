"""The loop: so many units under way at once, results to disk in groups, an orderly end when it is asked to stop.

Memory is bounded by the window: units are read when there is room for them, and results wait for the disk in a short
queue that holds everybody up when it is full.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice

from hpcserve.batch.lines import Item
from hpcserve.batch.output import result_of
from hpcserve.batch.plan import Work
from hpcserve.batch.store import Result
from hpcserve.batch.unit import Reply, Service, Unit
from hpcserve.errors import HpcserveError

_READ_AHEAD = 256  # requests
_MAX_GROUP = 2048  # results written at once, and waiting for that
_GROUP_S = 1.0  # what a crash may cost in work done again


class Stop:
    """How a run is told to end: soon, then at once. Set on the loop, by a signal handler for instance."""

    def __init__(self) -> None:
        self.soon = asyncio.Event()
        self.now = asyncio.Event()

    def ask(self) -> None:
        """Take no further requests; asked again: leave those under way, too."""
        (self.now if self.soon.is_set() else self.soon).set()


class Batch:
    """One run of some work."""

    def __init__(self, work: Work, service: Service, stop: Stop, *, window: int, grace_s: float = 30.0) -> None:
        self._work = work
        self._service = service
        self._stop = stop
        self._window = window
        self._grace_s = grace_s
        self._feed = _Feed(work.units(service.unit_size), max(1, _READ_AHEAD // service.unit_size))
        self._results: asyncio.Queue[Result | None] = asyncio.Queue(_MAX_GROUP)

    async def run(self) -> bool:
        """Return whether all is done; else it was stopped. What was answered is on disk either way.

        Raises `DeploymentError` when the service stays away, `HpcserveError` when the disk takes no more.
        """
        error: HpcserveError | None = None
        self._work.tally.started = time.monotonic()
        try:
            async with asyncio.TaskGroup() as writing:
                writing.create_task(self._write())
                try:
                    await self._ask_all()
                except* HpcserveError as group:
                    error = _first(group)
                await self._results.put(None)
        except* HpcserveError as group:
            error = _first(group)
        if error is not None:
            raise error
        return self._work.tally.num_finished == self._work.tally.num_requests

    async def _ask_all(self) -> None:
        async with asyncio.TaskGroup() as group:
            asking = [group.create_task(self._ask_some()) for _ in range(self._window)]
            ending = group.create_task(self._end_in_time(asking))
            await asyncio.wait(asking)
            ending.cancel()

    async def _ask_some(self) -> None:
        while not self._stop.soon.is_set():
            unit = await self._feed.next()
            if unit is None:
                return
            await self._service.run(unit, self._take)

    async def _take(self, item: Item, reply: Reply) -> None:
        tally = self._work.tally
        tally.num_retries += reply.attempts - 1
        if reply.status == 200:
            tally.add_usage(reply.body)
        await self._results.put(result_of(item, reply))

    async def _end_in_time(self, asking: list[asyncio.Task[None]]) -> None:
        await self._stop.soon.wait()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stop.now.wait(), self._grace_s)
        for task in asking:
            task.cancel()

    async def _write(self) -> None:
        """Write results in groups until there are no more."""
        is_last = False
        while not is_last:
            group, is_last = await self._group()
            if group:
                await asyncio.to_thread(self._work.store.write, group)
                self._work.tally.num_done += len(group)
                self._work.tally.num_failed += sum(result.failed for result in group)

    async def _group(self) -> tuple[list[Result], bool]:
        """Return what comes within a second, and whether nothing comes after it."""
        group: list[Result] = []
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(None) as limit:
                while len(group) < _MAX_GROUP:
                    result = await self._results.get()
                    if result is None:
                        return group, True
                    group.append(result)
                    if len(group) == 1:
                        limit.reschedule(loop.time() + _GROUP_S)
        except TimeoutError:
            pass
        return group, False


class _Feed:
    """The units one by one, read in a thread some way ahead."""

    def __init__(self, units: Iterator[Unit], num_ahead: int) -> None:
        self._units = units
        self._num_ahead = num_ahead
        self._ahead: deque[Unit] = deque()
        self._is_empty = False
        self._reading = asyncio.Lock()

    async def next(self) -> Unit | None:
        """Return the next unit, or None after the last."""
        while not self._ahead and not self._is_empty:
            async with self._reading:
                if not self._ahead and not self._is_empty:
                    read = await asyncio.to_thread(lambda: list(islice(self._units, self._num_ahead)))
                    self._ahead.extend(read)
                    self._is_empty = not read
        return self._ahead.popleft() if self._ahead else None


def _first(group: BaseExceptionGroup[HpcserveError]) -> HpcserveError:
    found = group.exceptions[0]
    return _first(found) if isinstance(found, BaseExceptionGroup) else found
