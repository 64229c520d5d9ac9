"""Has all pairs of processes pull from each other, one pair at a time: the fabric as KV sees it.

Which processes there are is not decided here, nor how KV travels between them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import msgspec

from hpcserve.bench.kv_remote import Remote, call
from hpcserve.bench.kv_side import BenchKind, Introduction, Timing
from hpcserve.kv.interface import interface_name


class KvPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What is measured."""

    transport: BenchKind
    sizes: tuple[int, ...]  # bytes
    block: int | None = None  # bytes of a range; None: a pull is one range
    repeats: int = 5
    min_gb_per_s: float = 0.0
    beside_plain: bool = True  # also MPI's own Send and Recv, where MPI is


class KvRow(msgspec.Struct, frozen=True, kw_only=True):
    """One size between two processes. Rates are medians, in 10^9 bytes a second."""

    puller: int  # rank
    source: int
    puller_node: str
    source_node: str
    interface: str
    size: int  # bytes
    gb_per_s: float
    memcpy_gb_per_s: float  # of the same size, in the puller
    plain_gb_per_s: float | None  # of MPI_Send and MPI_Recv
    error: str | None


class KvReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `hpcserve bench kv --json` prints."""

    plan: KvPlan
    path: str
    warnings: tuple[str, ...]
    rows: tuple[KvRow, ...]

    def refused(self) -> list[str]:
        """Return a sentence for each pair that corrupts, fails, or stays under the floor at all of its sizes."""
        sentences = []
        for (puller, source), group in itertools.groupby(self.rows, key=lambda row: (row.puller, row.source)):
            rows = list(group)
            first = rows[0]
            pair = f"rank {puller} on {first.puller_node} from rank {source} on {first.source_node}, {first.interface}"
            bad = next((row for row in rows if row.error is not None), None)
            best = max(row.gb_per_s for row in rows)
            if bad is not None:
                sentences.append(f"{pair}: {bad.size} bytes: {bad.error}")
            elif best < self.plan.min_gb_per_s:
                sentences.append(f"{pair}: {best:.3f} GB/s at best, and the floor is {self.plan.min_gb_per_s:g}")
        return sentences


def measure_pairs(plan: KvPlan, remotes: Sequence[Remote], say: Callable[[str], None]) -> KvReport:
    """Measure every pair in both directions. Raises `KVError` for what is no matter of a pair."""
    for remote in remotes:
        remote.ask("open", list(plan.sizes))
    sides: list[Introduction] = [remote.answer() for remote in remotes]
    memcpy = {size: size / call(remotes[0], "memcpy", size, plan.repeats) / 1e9 for size in plan.sizes}
    rows = []
    for puller, source in itertools.permutations(range(len(remotes)), 2):
        say(f"rank {puller} on {sides[puller].node} pulls from rank {source} on {sides[source].node}")
        for size in plan.sizes:
            timing = call(
                remotes[puller],
                "pull",
                sides[source].description,
                size,
                plan.block,
                sides[source].sums[size],
                plan.repeats,
            )
            plain = _plain(plan, remotes[puller], remotes[source], size) if timing.error is None else None
            rows.append(_row(plan, (puller, source), sides, size, timing, memcpy[size], plain))
            if timing.error is not None:
                break
    return KvReport(plan=plan, path=sides[0].path, warnings=sides[0].warnings, rows=tuple(rows))


def _plain(plan: KvPlan, puller: Remote, source: Remote, size: int) -> float | None:
    if plan.transport == "nixl" or not plan.beside_plain:
        return None
    # the coordinator's own side works when it is asked for the answer: it must be the second
    first, second = (puller, source) if source.rank == 0 else (source, puller)
    for remote in (first, second):
        remote.ask(*(("receive", source.rank) if remote is puller else ("send", puller.rank)), size, plan.repeats)
    if first is source:
        seconds = second.answer()
        first.answer()
    else:
        second.answer()
        seconds = first.answer()
    return float(size / seconds / 1e9)


def _row(
    plan: KvPlan,
    pair: tuple[int, int],
    sides: Sequence[Introduction],
    size: int,
    timing: Timing,
    memcpy: float,
    plain: float | None,
) -> KvRow:
    puller, source = (sides[index] for index in pair)
    return KvRow(
        puller=pair[0],
        source=pair[1],
        puller_node=puller.node,
        source_node=source.node,
        interface=interface_name(plan.transport, is_same_node=puller.node == source.node),
        size=size,
        gb_per_s=size / timing.median_s / 1e9 if timing.median_s else 0.0,
        memcpy_gb_per_s=memcpy,
        plain_gb_per_s=plain,
        error=timing.error,
    )
