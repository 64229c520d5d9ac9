"""Ties the engine's simulated clock to the event loop's."""

from __future__ import annotations

import asyncio
import math


class Pace:
    """Simulated seconds since the start. Without limit (`speedup` inf) they pass only in steps, and cost nothing.

    Waits end at absolute times: a wait that ends late makes the next one shorter, so lateness does not add up.
    """

    def __init__(self, speedup: float) -> None:
        self._speedup = speedup
        self._start = asyncio.get_running_loop().time()
        self.now = 0.0  # how far the engine has come

    async def reach(self, time_s: float) -> None:
        """Wait until the simulated time `time_s`; let others run even if that has passed."""
        self.now = time_s
        await asyncio.sleep(max(0.0, self._delay(time_s)))

    async def reach_or(self, time_s: float, interrupt: asyncio.Event) -> None:
        """Wait until `time_s` or `interrupt`, whichever is first."""
        if math.isinf(self._speedup):
            await self.reach(time_s)
            return
        try:
            async with asyncio.timeout(max(0.0, self._delay(time_s))):
                await interrupt.wait()
            self.catch_up()
        except TimeoutError:
            self.now = time_s

    def catch_up(self) -> None:
        """Skip the time in which there was nothing to do."""
        if not math.isinf(self._speedup):
            self.now = max(self.now, self._elapsed())

    def _delay(self, time_s: float) -> float:
        return 0.0 if math.isinf(self._speedup) else (time_s - self._elapsed()) / self._speedup

    def _elapsed(self) -> float:
        return (asyncio.get_running_loop().time() - self._start) * self._speedup
