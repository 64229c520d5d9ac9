"""An event loop whose clock jumps to the next timer whenever nothing is ready: waits are exact, and take no time."""

from __future__ import annotations

import asyncio
import selectors
from typing import Any


class JumpingSelector(selectors.DefaultSelector):
    """Polls; where nothing is ready, the waiting time passes at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        ready = super().select(0)
        if not ready:
            self.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time as the selector counts it."""

    def __init__(self) -> None:
        self._jumping = JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now
