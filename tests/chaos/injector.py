"""Does what the plan says, when it says so, and undoes it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from tests.chaos.faults.fault import Fault, NoTarget, Undo
from tests.chaos.plan import Event, Plan
from tests.chaos.report import Happened
from tests.chaos.world import World


@dataclass
class Injector:
    """Owns what is not undone yet. What it did is appended to `happened`."""

    world: World
    faults: dict[str, Fault]
    happened: list[Happened]
    complaints: list[str] = field(default_factory=list)
    _pending: dict[asyncio.Task[None], None] = field(default_factory=dict)
    _undoing_now: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, plan: Plan) -> None:
        """Inflict every event at its time; return when the load's time is over."""
        began = time.monotonic()
        for event in plan.events:
            await asyncio.sleep(max(0.0, event.at_s - (time.monotonic() - began)))
            await self._inflict(event, time.monotonic() - began)
        await asyncio.sleep(max(0.0, plan.duration_s - (time.monotonic() - began)))

    async def undo_all(self) -> None:
        """Undo at once what is left."""
        self._undoing_now.set()
        if self._pending:
            await asyncio.wait(self._pending)

    async def _inflict(self, event: Event, at_s: float) -> None:
        happened = Happened(round(at_s, 2), event.fault, "")
        self.happened.append(happened)
        try:
            inflicted = await self.faults[event.fault].apply(self.world, event.target)
        except NoTarget:
            happened.undone = "nobody to do it to"
            return
        happened.what = inflicted.what
        print(f"{at_s:7.1f} s  {inflicted.what}", flush=True)
        if inflicted.undo is not None:
            task = asyncio.create_task(self._undo_later(event, inflicted.undo, happened))
            self._pending[task] = None
            task.add_done_callback(lambda done: self._pending.pop(done, None))

    async def _undo_later(self, event: Event, undo: Undo, happened: Happened) -> None:
        try:
            async with asyncio.timeout(event.hold_s):
                await self._undoing_now.wait()
        except TimeoutError:
            pass
        try:
            happened.undone = await undo()
        except (RuntimeError, OSError) as err:
            happened.undone = f"failed: {err}"
            self.complaints.append(f"{event.fault} at {event.at_s:.1f} s could not be undone: {err}")
        print(f"           {happened.fault}: {happened.undone}", flush=True)
