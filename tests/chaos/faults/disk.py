"""The file system under state directory, logs and ledgers is full for a while."""

from __future__ import annotations

import os

from tests.chaos.faults.fault import Fault, Inflicted, NoTarget
from tests.chaos.world import World

_CHUNK = bytes(1 << 20)


async def _fill(world: World, target: float) -> Inflicted:
    if world.disk is None:
        raise NoTarget
    path = world.disk / "filling"
    size = 0
    with path.open("ab", buffering=0) as file:
        for part in (_CHUNK, _CHUNK[:4096], b"\0"):
            try:
                while True:
                    size += os.write(file.fileno(), part)
            except OSError:
                continue

    async def free() -> str:
        path.unlink(missing_ok=True)
        return "freed"

    return Inflicted(f"the disk is full ({size >> 20} MiB written)", free)


FAULTS = (Fault("fill-disk", 1, _fill, hold_s=(2.0, 12.0)),)
