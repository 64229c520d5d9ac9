"""Sums up a replay. Percentiles are interpolated linearly between ranks, as numpy does by default."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import msgspec

from hpcserve.router.stats import RouterStats
from hpcserve.simulate.record import Gaps, Record
from hpcserve.simulate.scenario import Scenario

_NS_PER_MS = 1e6


class Spread(msgspec.Struct, frozen=True):
    """A distribution in few numbers, in milliseconds."""

    mean: float
    p50: float
    p90: float
    p99: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What came out. As JSON it has these keys; it holds nothing of the machine that the replay ran on."""

    policy: str
    workers: str  # such as "8" or "2 prefill + 6 decode"
    num_requests: int  # completed
    num_rejected: int  # whose prompt does not fit into a worker's KV cache
    duration_s: float  # from the trace's beginning to the last token
    ttft_ms: Spread  # over requests
    itl_ms: Spread  # over all gaps between two tokens of a request
    e2e_ms: Spread  # over requests
    prefix_hit_ratio: float  # prompt tokens that a worker held, the one that computes the prompt or another, over all
    own_hit_ratio: float  # of those, found in the cache of the worker that computes the prompt
    first_hit_ratio: float  # of those, without what was found after a preemption: mostly the request's own blocks
    kv_pulled_tokens: int  # fetched from other workers, decode workers' own included
    goodput: float  # requests a second that met the SLO
    slo_attainment: float  # share of requests that met it
    output_tokens_per_s: float
    worker_hours: float  # from the start of each worker's job to its end, or to that of the replay
    remote_prefills: int
    num_assignments: int


def make_report(
    scenario: Scenario, records: Sequence[Record], gaps: Gaps, stats: RouterStats, worker_s: float | None = None
) -> Report:
    """Return the numbers of a replay that has ended. `worker_s`: of all workers; None: they were there all the time."""
    done = [record for record in records if record.ended_at is not None]
    duration_s = max((record.ended_at for record in done if record.ended_at is not None), default=0.0)
    num_good = sum(_is_good(record, scenario) for record in done)
    prompt_tokens = max(1, sum(record.num_prompt for record in done))
    return Report(
        policy=scenario.router.policy,
        workers=scenario.size,
        num_requests=len(done),
        num_rejected=sum(record.is_rejected for record in records),
        duration_s=duration_s,
        ttft_ms=spread([record.ttft_s * 1000 for record in done]),
        itl_ms=_spread_of_gaps(gaps),
        e2e_ms=spread([record.e2e_s * 1000 for record in done]),
        prefix_hit_ratio=sum(record.hit_tokens for record in done) / prompt_tokens,
        own_hit_ratio=sum(record.cached_tokens for record in done) / prompt_tokens,
        first_hit_ratio=sum(record.first_cached_tokens for record in done) / prompt_tokens,
        kv_pulled_tokens=sum(record.pulled_tokens for record in done),
        goodput=num_good / duration_s if duration_s else 0.0,
        slo_attainment=num_good / len(records) if records else 0.0,
        output_tokens_per_s=sum(record.num_output for record in done) / duration_s if duration_s else 0.0,
        worker_hours=(scenario.num_workers * duration_s if worker_s is None else worker_s) / 3600,
        remote_prefills=stats.remote_prefills,
        num_assignments=sum(stats.assignments.values()),
    )


def spread(values: Sequence[float]) -> Spread:
    """Return mean and percentiles; zeros for no values."""
    if not values:
        return Spread(0.0, 0.0, 0.0, 0.0)
    ordered = sorted(values)
    return Spread(sum(ordered) / len(ordered), *(_interpolated(ordered, share) for share in (0.5, 0.9, 0.99)))


def _interpolated(ordered: Sequence[float], share: float) -> float:
    rank = share * (len(ordered) - 1)
    low = int(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)


def _spread_of_gaps(gaps: Gaps) -> Spread:
    """Nearest ranks, of millions of gaps: what lies between two of them is below their resolution."""
    total = sum(gaps.counts.values())
    if not total:
        return Spread(0.0, 0.0, 0.0, 0.0)
    ordered = sorted(gaps.counts.items())
    mean = sum(gap * count for gap, count in ordered) / total
    ranks = [max(1, ceil(total * share)) for share in (0.5, 0.9, 0.99)]
    found: list[float] = []
    seen = 0
    for gap, count in ordered:
        seen += count
        while len(found) < len(ranks) and seen >= ranks[len(found)]:
            found.append(gap / _NS_PER_MS)
    return Spread(mean / _NS_PER_MS, *found)


def _is_good(record: Record, scenario: Scenario) -> bool:
    ttft, itl = scenario.slo_ttft_ms, scenario.slo_itl_ms
    return (ttft is None or record.ttft_s * 1000 <= ttft) and (itl is None or record.mean_itl_s * 1000 <= itl)
