"""What a run is going to do, drawn from its seed: the deployment, and which fault comes when, to whom, for how long.

Pure: the same seed and options give the same plan. It does not know what the faults do; targets are numbers from 0 to
1, which stand for one of those that are there at the time.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, TypeVar

T = TypeVar("T")
Engine = Literal["mock", "vllm"]
Beside = Literal["nothing", "run", "uploaded", "both"]

WALLTIMES = (None, None, "00:03:00", "00:04:00")
"""To choose from: half of the deployments see theirs end."""

_QUIET_S = 3.0  # before the first fault


class FaultKind(Protocol):
    """What the plan has to know of a fault."""

    @property
    def name(self) -> str: ...
    @property
    def weight(self) -> float: ...
    @property
    def hold_s(self) -> tuple[float, float]: ...


@dataclass(frozen=True)
class Scenario:
    """The deployment that is going to suffer, and the load on it."""

    engine: Engine
    num_workers: int
    num_frontends: int
    is_disaggregated: bool
    walltime: str | None  # as Slurm writes it
    beside: Beside  # the batches that run beside
    num_clients: int


@dataclass(frozen=True)
class Event:
    """One fault."""

    at_s: float  # after the start of the load
    fault: str
    target: float  # 0 to 1: which of the possible ones
    hold_s: float  # until it is undone; 0: nothing is


@dataclass(frozen=True)
class Plan:
    """One run."""

    seed: int
    duration_s: float
    scenario: Scenario
    events: tuple[Event, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """The plan for people."""
        told = [f"seed {self.seed}, {self.duration_s:.0f} s of load, {self.scenario}"]
        for event in self.events:
            held = f" for {event.hold_s:.1f} s" if event.hold_s else ""
            told.append(f"{event.at_s:7.1f} s  {event.fault}{held}, target {event.target:.3f}")
        return told


def draw_plan(
    seed: int,
    duration_s: float,
    kinds: Sequence[FaultKind],
    *,
    engine: Engine = "mock",
    num_workers: int = 4,
    num_clients: int = 8,
    mean_gap_s: float = 12.0,
    beside: Beside | None = None,
    walltimes: Sequence[str | None] = WALLTIMES,
    num_frontends: int | None = None,
) -> Plan:
    """Draw everything. What is given is not drawn; `walltimes` are those to choose from."""
    rng = random.Random(seed)
    scenario = Scenario(
        engine=engine,
        num_workers=num_workers,
        num_frontends=_given_or(num_frontends, rng.choice((1, 2, 2))),
        is_disaggregated=rng.random() < 0.3 and num_workers >= 3 and engine == "mock",
        walltime=rng.choice(list(walltimes)),
        beside=_given_or(beside, rng.choice(("nothing", "run", "uploaded", "both"))),
        num_clients=num_clients,
    )
    return Plan(seed, duration_s, scenario, _draw_events(rng, duration_s, kinds, mean_gap_s))


def _draw_events(
    rng: random.Random, duration_s: float, kinds: Sequence[FaultKind], mean_gap_s: float
) -> tuple[Event, ...]:
    """Each kind once before any comes twice, in an order that the seed decides; then by weight."""
    events, at_s = [], _QUIET_S + rng.random()
    unseen = [kind for kind in kinds if kind.weight]
    rng.shuffle(unseen)
    while at_s < duration_s and kinds:
        kind = unseen.pop() if unseen else rng.choices(kinds, [each.weight for each in kinds])[0]
        low, high = kind.hold_s
        events.append(Event(round(at_s, 2), kind.name, round(rng.random(), 3), round(rng.uniform(low, high), 2)))
        at_s += min(rng.expovariate(1 / mean_gap_s), 3 * mean_gap_s) + 0.5
    return tuple(events)


def _given_or(given: T | None, drawn: T) -> T:
    return drawn if given is None else given
