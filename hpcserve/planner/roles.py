"""Which workers change their role: how a number of workers is split, and who goes over."""

from __future__ import annotations

from collections.abc import Iterable

from hpcserve.planner.decisions import Flip, Need
from hpcserve.planner.observation import Observation, Sight
from hpcserve.types import Role

_WORTH = 1.15
"""Where there are too few workers for both, the other split must be better by this factor."""


def best_split(need: Need, num: int, now: int) -> int:
    """Return how many of `num` workers, at least 2, had better compute prompts; `now` do. Both roles keep one.

    Splits that keep up with what comes are better than those that keep to the objectives in one role only.
    """
    now = min(max(now, 1), num - 1)
    if _strain(need, now, num) <= 1:
        return now
    best = min(
        range(1, num),
        key=lambda prefill: (_excess(need, prefill, num), _strain(need, prefill, num), abs(prefill - now)),
    )
    if _excess(need, best, num) * _WORTH <= _excess(need, now, num):
        return best
    return best if _strain(need, best, num) * _WORTH <= _strain(need, now, num) else now


def flips(need: Need, seen: Observation) -> list[Flip]:
    """Return the changes of roles that `need` calls for: half of what is missing at once, the idlest workers first."""
    prefillers, decoders = seen.of(Role.PREFILL, ready=True), seen.of(Role.DECODE, ready=True)
    num = len(prefillers) + len(decoders)
    if num < 2:
        return []
    missing = best_split(need, num, len(prefillers)) - len(prefillers)
    givers, role = (decoders, Role.PREFILL) if missing > 0 else (prefillers, Role.DECODE)
    chosen = idlest_first(givers)[: (abs(missing) + 1) // 2]
    why = _why(need, len(prefillers), len(decoders))
    return [Flip(worker=each.worker, role=role, reason=why) for each in chosen]


def is_lame(seen: Observation) -> bool:
    """Whether a role has lost its last worker while the other has several."""
    numbers = [len(seen.of(role, ready=True)) for role in (Role.PREFILL, Role.DECODE)]
    return 0 in numbers and sum(numbers) > 1


def idlest_first(workers: Iterable[Sight]) -> list[Sight]:
    """Order workers by how little is lost with them."""
    return sorted(workers, key=lambda each: (each.num_requests, each.queued_ms, each.kv_usage, each.worker))


def _excess(need: Need, prefill: int, num: int) -> float:
    """Return what comes over what is kept up with, in the role where that is more; 1 if both keep up."""
    return max(1.0, need.least_prefill / prefill, need.least_decode / (num - prefill))


def _strain(need: Need, prefill: int, num: int) -> float:
    """Return the load of the role that has too few, as a multiple of what it can take."""
    return max(need.prefill / prefill, need.decode / (num - prefill))


def _why(need: Need, prefill: int, decode: int) -> str:
    waiting = f", {need.backlog_s:.1f} s of them wait" if need.backlog_s >= 0.1 else ""
    share = f" at {need.kv / decode:.0%} of their KV" if decode else ""
    return (
        f"prompts need {need.prefill} {_workers(need.prefill)} and have {prefill}{waiting}; "
        f"decoding needs {need.decode} and has {decode}{share}"
    )


def _workers(num: int) -> str:
    return "worker" if num == 1 else "workers"
