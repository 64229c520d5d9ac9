"""Observations in few words."""

from __future__ import annotations

from hpcserve.planner import Observation, Sight
from hpcserve.types import Role, WorkerId


def sight(role: Role, number: int, *, state: str = "ready", pool: Role | None = None, **load: float) -> Sight:
    kind = pool or role
    return Sight(worker=WorkerId(f"{kind}-{number}"), pool=kind.value, role=role, state=state, **load)  # type: ignore[arg-type]


class Scene:
    """A deployment that a test moves through time, an interval after another."""

    def __init__(self) -> None:
        self.now = 100.0

    def see(
        self,
        *workers: Sight,
        sizes: dict[str, int] | None = None,
        passes: float = 5.0,
        offered: float = 0.0,
        prompt_ms: float = 200.0,
        **more: float,
    ) -> Observation:
        """Prompts of `prompt_ms` each have come that keep `offered` workers computing."""
        self.now += passes
        wanted = {pool: sum(each.pool == pool for each in workers) for pool in {each.pool for each in workers}}
        num = round(offered * passes * 1000 / prompt_ms)
        return Observation(
            now=self.now,
            interval_s=passes,
            sizes=sizes or wanted,
            workers=workers,
            num_arrived=num,
            arrived_ms=num * prompt_ms,
            arrived_squares=2 * num * prompt_ms**2,
            **more,  # type: ignore[arg-type]
        )
