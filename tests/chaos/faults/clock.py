"""Wall clocks that jump, as they do when somebody corrects them, and jump back."""

from __future__ import annotations

from tests.chaos.faults.fault import Fault, Inflicted, NoTarget
from tests.chaos.world import World

_JUMPS_S = (-3600.0, -60.0, -5.0, 5.0, 60.0, 600.0, 3600.0)


async def _jump(world: World, target: float) -> Inflicted:
    """Of agents, or of everybody else; the target says which, and how far."""
    if world.clocks is None:
        raise NoTarget
    clocks, choice = world.clocks, int(target * 2 * len(_JUMPS_S))
    jump_s, of_agents = _JUMPS_S[choice // 2 % len(_JUMPS_S)], bool(choice % 2)
    clocks.shift(agents_s=jump_s if of_agents else 0.0, others_s=0.0 if of_agents else jump_s)

    async def back() -> str:
        clocks.shift()
        return "clocks are right again"

    return Inflicted(f"the clock of {'agents' if of_agents else 'head and frontends'} jumps by {jump_s:+.0f} s", back)


FAULTS = (Fault("jump-clock", 1, _jump, hold_s=(2.0, 20.0)),)
