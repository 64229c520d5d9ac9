"""What frontends count of the requests that go through them, as it is told to the head and from there to everybody."""

from __future__ import annotations

import operator
from collections.abc import Callable

import msgspec


class Traffic(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One frontend's counts since it started, those of all frontends, or what was counted between two moments.

    Latencies are observations by bucket of `observability.metrics`' histograms; empty until there was one.
    """

    ttft: tuple[int, ...] = ()
    itl: tuple[int, ...] = ()
    running: int = 0  # HTTP requests that generate now: this and `queued` also fall
    queued: int = 0  # of those, without a first token yet
    finished: int = 0  # sequences that ended, whichever way
    remote_prefills: int = 0  # prompts computed by another worker than the one that decoded
    prefix_pulls: int = 0  # warm prefixes handed from one worker to another
    moved: int = 0  # sequences given to another worker after theirs was lost

    def __add__(self, other: Traffic) -> Traffic:
        """Return the counts of both together."""
        return _combined(operator.add, self, other)

    def __sub__(self, earlier: Traffic) -> Traffic:
        """Return what was counted since `earlier`. Negative where a counter began anew in between."""
        return _combined(operator.sub, self, earlier)


def _combined(combine: Callable[[int, int], int], left: Traffic, right: Traffic) -> Traffic:
    return Traffic(
        ttft=_counts(combine, left.ttft, right.ttft),
        itl=_counts(combine, left.itl, right.itl),
        running=combine(left.running, right.running),
        queued=combine(left.queued, right.queued),
        finished=combine(left.finished, right.finished),
        remote_prefills=combine(left.remote_prefills, right.remote_prefills),
        prefix_pulls=combine(left.prefix_pulls, right.prefix_pulls),
        moved=combine(left.moved, right.moved),
    )


def _counts(combine: Callable[[int, int], int], left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
    none = (0,) * max(len(left), len(right))
    return tuple(map(combine, left or none, right or none))
