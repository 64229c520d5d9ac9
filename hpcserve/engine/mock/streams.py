"""Carries outputs from the engine's loop to whoever iterates over a request."""

from __future__ import annotations

import asyncio
from collections import deque

from hpcserve.errors import EngineError
from hpcserve.types import EngineOutput


class OutputStream:
    """A queue with one reader. Cheaper than `asyncio.Queue`, which matters at one wake-up a token."""

    def __init__(self) -> None:
        self._outputs: deque[EngineOutput] = deque()
        self._error: EngineError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def put(self, output: EngineOutput) -> None:
        """Add an output and wake the reader."""
        self._outputs.append(output)
        self._wake()

    def fail(self, error: EngineError) -> None:
        """Raise `error` in the reader, after the outputs that are there."""
        self._error = error
        self._wake()

    async def get(self) -> EngineOutput:
        """Return the next output. Safe to cancel. Raises the error that the stream failed with."""
        while not self._outputs:
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._outputs.popleft()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
