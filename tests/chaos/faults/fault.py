"""What a fault is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from tests.chaos.world import World

T = TypeVar("T")
Undo = Callable[[], Awaitable[str]]


class NoTarget(Exception):
    """There is nobody whom this could happen to now."""


@dataclass(frozen=True)
class Inflicted:
    """What was done, in words, and how to undo it, which says how that went."""

    what: str
    undo: Undo | None = None


@dataclass(frozen=True)
class Fault:
    """One kind. `apply` is given where, from 0 to 1; it raises `NoTarget` where there is no place."""

    name: str
    weight: float  # how often, beside the others
    apply: Callable[[World, float], Awaitable[Inflicted]]
    hold_s: tuple[float, float] = (0.0, 0.0)  # from when to when it is undone


def pick(candidates: list[T], target: float) -> T:
    """Return the one that a target stands for. Raises `NoTarget` if there is none."""
    if not candidates:
        raise NoTarget
    return candidates[min(int(target * len(candidates)), len(candidates) - 1)]
