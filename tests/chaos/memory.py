"""Memory of the deployment's processes over a run. It is flat where the end is like the middle."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from dataclasses import dataclass, field

from tests.benchmarks.process_cpu import rss_mb
from tests.chaos.world import World

_EVERY_S = 5.0
_MIN_AGE_S = 240.0  # younger processes still fill their caches
_MAX_GROWTH_MB_A_MINUTE = 1.5
_SLACK_MB = 15.0


@dataclass
class Memory:
    """Samples of every process that was there, by what it was and its pid."""

    world: World
    samples: dict[tuple[str, int], list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))

    async def watch(self) -> None:
        """Look every few seconds until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(_EVERY_S)

    def look(self) -> None:
        """Take one sample of each process."""
        now = time.monotonic()
        for name, pid in self.world.everybody().items():
            try:
                self.samples[name, pid].append((now, rss_mb([pid])))
            except OSError:
                continue

    def complaints(self) -> list[str]:
        """Return the processes whose second half of life ends with more memory than it began with."""
        return [
            f"{name}: {middle:.0f} MB in the middle, {last:.0f} MB at the end, {minutes:.1f} minutes later"
            for name, (middle, last, minutes) in self.halves().items()
            if last - middle > _SLACK_MB + _MAX_GROWTH_MB_A_MINUTE * minutes
        ]

    def halves(self) -> dict[str, tuple[float, float, float]]:
        """Return of each process that lived long its MB in the middle and at the end, and the minutes in between."""
        found = {}
        for (name, _), taken in self.samples.items():
            if taken[-1][0] - taken[0][0] >= _MIN_AGE_S:
                middle, last = taken[len(taken) // 2], taken[-1]
                found[name] = (middle[1], last[1], (last[0] - middle[0]) / 60)
        return found
