"""Finds the smallest fleet that meets an SLO. It takes for granted that a larger fleet does no worse.

Sizes are halved in on; at each, one pool that does both is tried, then splits into prefill and decode workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace as with_changes
from math import ceil

import msgspec

from hpcserve.simulate.event_loop import replay
from hpcserve.simulate.report import Report
from hpcserve.simulate.scenario import Scenario
from hpcserve.simulate.trace import TraceRequest

_PREFILL_SHARES = (0.25, 0.5, 0.75, 0.125)  # of a split fleet, most likely first


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One fleet that was tried."""

    num_workers: int
    meets_slo: bool
    node_hours: float
    report: Report


class SweepResult(msgspec.Struct, frozen=True, kw_only=True):
    """What was tried, smallest first, and the smallest that is enough."""

    smallest: Trial | None
    verdict: str
    trials: list[Trial]


def sweep(scenario: Scenario, trace: Sequence[TraceRequest], attainment: float, workers_per_node: int) -> SweepResult:
    """Try sizes from 1 to `scenario.workers`; `attainment` is the share of requests that must meet the SLO."""
    trials: list[Trial] = []

    def smallest_of(size: int) -> Trial | None:
        for fleet in _fleets(scenario, size):
            trial = _try(fleet, trace, attainment, workers_per_node)
            trials.append(trial)
            if trial.meets_slo:
                return trial
        return None

    low, high = 1, scenario.workers
    best = smallest_of(high)
    while best is not None and low < high:
        middle = (low + high) // 2
        found = smallest_of(middle)
        if found is not None:
            best, high = found, middle
        else:
            low = middle + 1
    trials.sort(key=lambda trial: (trial.num_workers, trial.report.workers))
    return SweepResult(smallest=best, verdict=_verdict(best, scenario, attainment), trials=trials)


def _fleets(scenario: Scenario, size: int) -> Iterator[Scenario]:
    yield with_changes(scenario, workers=size, prefill=0, decode=0)
    tried = set()
    for share in _PREFILL_SHARES:
        prefill = max(1, round(size * share))
        if prefill < size and prefill not in tried:
            tried.add(prefill)
            yield with_changes(scenario, prefill=prefill, decode=size - prefill)


def _try(fleet: Scenario, trace: Sequence[TraceRequest], attainment: float, workers_per_node: int) -> Trial:
    report = replay(fleet, trace)
    nodes = ceil(fleet.num_workers / workers_per_node)
    return Trial(
        num_workers=fleet.num_workers,
        meets_slo=report.slo_attainment >= attainment,
        node_hours=nodes * report.duration_s / 3600,
        report=report,
    )


def _verdict(best: Trial | None, scenario: Scenario, attainment: float) -> str:
    limits = (("TTFT", scenario.slo_ttft_ms), ("ITL", scenario.slo_itl_ms))
    slo = " and ".join(f"{name} <= {limit:g} ms" for name, limit in limits if limit is not None)
    wanted = f"{slo} for {attainment:.0%} of requests"
    if best is None:
        return f"no fleet of up to {scenario.workers} workers meets {wanted}; try a larger --workers"
    return (
        f"smallest: {best.report.workers} workers meet {wanted} ({best.report.slo_attainment:.1%}), "
        f"for {best.node_hours:.2f} node-hours"
    )
