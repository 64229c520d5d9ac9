"""Reports as people read them."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from hpcserve.simulate.planned import PlannedReport
from hpcserve.simulate.report import Report, Spread
from hpcserve.simulate.sweep import SweepResult


def print_report(report: Report, *, has_slo: bool) -> None:
    """Print latencies and totals to standard output."""
    console = Console()
    latencies = Table("ms", "mean", "p50", "p90", "p99")
    for name, spread in (("TTFT", report.ttft_ms), ("ITL", report.itl_ms), ("e2e", report.e2e_ms)):
        latencies.add_row(name, *_cells(spread))
    totals = Table(show_header=False)
    for label, text in _totals(report, has_slo=has_slo):
        totals.add_row(label, text)
    console.print(latencies)
    console.print(totals)


def print_sweep(result: SweepResult) -> None:
    """Print what was tried, smallest first, and the answer."""
    console = Console()
    table = Table()
    for heading in ("workers", "in SLO", "TTFT p50", "p99", "ITL p50", "hits", "node-h"):
        table.add_column(heading, no_wrap=True)
    for trial in result.trials:
        report = trial.report
        ttft, itl = report.ttft_ms, report.itl_ms
        latencies = (f"{ttft.p50:,.0f}", f"{ttft.p99:,.0f}", f"{itl.p50:.1f}")
        hits = f"{report.prefix_hit_ratio:.1%}"
        table.add_row(report.workers, f"{report.slo_attainment:.1%}", *latencies, hits, f"{trial.node_hours:.2f}")
    console.print(table)
    console.print(result.verdict)


def print_planned(result: PlannedReport) -> None:
    """Print what came out, and what the planner did and why."""
    print_report(result.report, has_slo=True)
    console = Console()
    kinds = [change.kind for change in result.changes]
    console.print(
        f"planner: {result.least_workers} to {result.most_workers} workers; {kinds.count('flip')} changes of roles, "
        f"{kinds.count('grow')} times more workers, {kinds.count('shrink')} times fewer"
    )
    for change in result.changes:
        console.print(f"{change.at_s:8,.0f} s  {change.text}", highlight=False, soft_wrap=True)


def _totals(report: Report, *, has_slo: bool) -> list[tuple[str, str]]:
    slo = f"{report.goodput:.2f} requests/s ({report.slo_attainment:.1%} of them)" if has_slo else "no SLO given"
    rejected = f", {report.num_rejected:,} rejected" if report.num_rejected else ""
    return [
        ("policy, workers", f"{report.policy}, {report.workers}"),
        ("requests", f"{report.num_requests:,}{rejected}"),
        ("prefix hits", f"{report.prefix_hit_ratio:.1%} of prompt tokens, {report.own_hit_ratio:.1%} without pulling"),
        ("KV pulled", f"{report.kv_pulled_tokens:,} tokens"),
        ("goodput", slo),
        ("output", f"{report.output_tokens_per_s:,.0f} tokens/s"),
        ("duration", f"{report.duration_s:,.1f} s"),
        ("worker-hours", f"{report.worker_hours:.2f}"),
    ]


def _cells(spread: Spread) -> list[str]:
    return [f"{value:,.1f}" for value in (spread.mean, spread.p50, spread.p90, spread.p99)]
