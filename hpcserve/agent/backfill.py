"""Holds back offline requests that come to an agent directly, as units, until its engine has room for them.

Those that come through the head are held back there, by the same rule (`router/backfill.py`). It starts no requests,
and stops none: which of those that the engine has goes first is said by their priorities.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from hpcserve.router.backfill import QUIET_S, BackfillRule, Occupied
from hpcserve.types import EngineInfo, EngineRequest, LoadReport

_LOOK_AGAIN_S = 0.02  # while somebody waits: engines do not tell when a pass ends


class Backfill:
    """The gate of one engine, for `Units`. All methods are called on the agent's event loop."""

    def __init__(
        self, load: Callable[[], LoadReport], rule: BackfillRule, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`load` is the engine's; `clock` gives seconds."""
        self._load = load
        self._rule = rule
        self._clock = clock
        self._engine: EngineInfo | None = None
        self._num_admitted = 0
        self._seen = LoadReport()
        self._new_requests = self._new_tokens = 0  # admitted, and not in the newest report
        self._online_at: float | None = None
        self._turn = asyncio.Lock()  # first come, first served
        self._changed = asyncio.Event()

    def open(self, engine: EngineInfo) -> None:
        """The engine has started, and this is how large it is."""
        self._engine = engine

    def note(self, request: EngineRequest) -> None:
        """A request came from a frontend; while there are online ones, batches take less."""
        if not self._rule.holds_for(request.priority) and not request.moves_away:  # that is a step of another one's
            self._online_at = self._clock()

    @asynccontextmanager
    async def gate(self, request: EngineRequest) -> AsyncIterator[None]:
        """Wait until an offline request may start, and hold its place until it has ended."""
        await self.admit(len(request.token_ids))
        try:
            yield
        finally:
            self.released()

    async def admit(self, num_tokens: int) -> None:
        """Wait until there is room for a prompt of `num_tokens`, and take it; `released` gives it back.

        Safe to cancel: then nothing is taken.
        """
        async with self._turn:
            while not self._has_room(num_tokens):
                self._changed.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), _LOOK_AGAIN_S)
            self._num_admitted += 1
            self._new_requests += 1
            self._new_tokens += num_tokens

    def released(self) -> None:
        """One that was admitted has ended."""
        self._num_admitted -= 1
        self._new_requests = min(self._new_requests, self._num_admitted)
        self._changed.set()

    def _has_room(self, num_tokens: int) -> bool:
        report = self._load()
        if report != self._seen:
            self._seen, self._new_requests, self._new_tokens = report, 0, 0
        reported = report.num_running + report.num_waiting + self._new_requests
        occupied = Occupied(
            num_requests=max(reported, self._num_admitted),
            num_offline=self._num_admitted,
            queued_tokens=report.waiting_tokens + self._new_tokens,
            kv_share=report.kv_usage,
        )
        is_quiet = self._online_at is None or self._clock() - self._online_at > QUIET_S
        return self._rule.has_room(self._engine, occupied, num_tokens, is_quiet=is_quiet)
