"""The routing policies against Dynamo's routers on one trace: the tables of docs/routing.md, as Markdown.

Run: python -m tests.benchmarks.policies_against_dynamo --trace FILE --dynamo-python PYTHON [--policies kv,dynamo]

`dynamo_replay.py` says how to install Dynamo, and what is compared. Each of our policies is followed by its ratio to
Dynamo's kv_router: below 1 is faster, for hits and goodput above 1 is better. "!" marks what misses a target of the
project: on Mooncake's conversation trace at its own speed with large caches the times and hits of `GOALS`; otherwise
better than kv_router with large caches, and no worse with small ones, in TTFT mean, TTFT p99, e2e mean and goodput; and
ITL p50 at most 3 % above kv_router's everywhere. kv_router varies from run to run, so it runs --dynamo-runs times, and
what we are compared with is the median of each number; the smallest and the largest stand below it.

Dynamo's numbers can be kept in a file (--dynamo-json): what is there for the same trace, number of requests and SLO is
not run again, and what is run is added. --skip-dynamo takes only what is there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple, get_args

from hpcserve.config.models import RouterConfig
from hpcserve.simulate import Report, load_trace
from tests.benchmarks.dynamo_replay import Case, Slo, add_arguments, find_problem, run_dynamo, run_ours

POLICIES = get_args(RouterConfig.model_fields["policy"].annotation)
ROUTERS = ("kv_router", "round_robin")
VARYING = "kv_router"
LARGE, SMALL = 16384, 4096  # blocks
AGAINST = ("TTFT mean", "p99", "e2e mean", "goodput")
GOALS = {"TTFT mean": 205.0, "p50": 95.0, "p90": 480.0, "hits %": 26.0}
MOST_ITL = 1.03


class Column(NamedTuple):
    """One number of a case, and how it is written."""

    dynamo: str  # key of Dynamo's summary
    digits: int
    scale: float = 1.0
    is_higher_better: bool = False


COLUMNS = {
    "TTFT mean": Column("mean_ttft_ms", 0),
    "p50": Column("median_ttft_ms", 0),
    "p90": Column("p90_ttft_ms", 0),
    "p99": Column("p99_ttft_ms", 0),
    "e2e mean": Column("mean_e2e_latency_ms", 0),
    "ITL p50": Column("median_itl_ms", 1),
    "hits %": Column("prefix_cache_reused_ratio", 1, 100, is_higher_better=True),
    "goodput": Column("goodput_request_throughput_rps", 3, is_higher_better=True),
}
Row = dict[str, float]
"""By column."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--policies", type=lambda text: text.split(","), default=["kv", "dynamo"], help=str(POLICIES))
    parser.add_argument("--speeds", type=lambda text: [float(speed) for speed in text.split(",")], default=[1, 2, 4])
    parser.add_argument("--blocks", type=lambda text: [int(size) for size in text.split(",")], default=[LARGE, SMALL])
    parser.add_argument("--slo-ttft-ms", type=float, default=1000)
    parser.add_argument("--slo-itl-ms", type=float, default=25, help="of a request's mean")
    parser.add_argument("--dynamo-runs", type=int, default=5, help="of kv_router, for each case")
    parser.add_argument("--dynamo-json", type=Path, help="where Dynamo's numbers are kept")
    parser.add_argument("--skip-dynamo", action="store_true", help="only what --dynamo-json has")
    args = parser.parse_args()
    problem = find_problem(args.trace, Path(sys.executable) if args.skip_dynamo else args.dynamo_python)
    if problem:
        print(problem)
        return
    compare(args)


def compare(args: argparse.Namespace) -> None:
    """Print one table for each speed and size, as soon as it is known."""
    slo = Slo(args.slo_ttft_ms, args.slo_itl_ms)
    trace = load_trace(args.trace, args.requests)
    is_recorded = "conversation" in args.trace.name and args.requests is None
    promise = f"TTFT <= {slo.ttft_ms:g} ms and mean ITL <= {slo.itl_ms:g} ms"
    print(f"{len(trace):,} requests of {args.trace.name}; goodput is that of {promise}")
    kept = Kept(args.dynamo_json, args.trace, len(trace), slo)
    sizes = list(product(args.blocks, args.speeds))
    if not args.skip_dynamo:
        runs = {router: args.dynamo_runs if router == VARYING else 1 for router in ROUTERS}
        wanted = [case for b, s in sizes for r in ROUTERS for case in [Case(r, s, b)] * runs[r]]
        kept.add(wanted, args.trace, args.dynamo_python, args.requests)
    for blocks, speed in sizes:
        print(f"\nspeed {speed:g}, {blocks:,} blocks\n")
        print("| | " + " | ".join(COLUMNS) + " |\n|---|" + "---|" * len(COLUMNS))
        for router in ROUTERS:
            show_runs(f"Dynamo {router}", kept.rows(Case(router, speed, blocks)))
        baseline = median_of(kept.rows(Case(VARYING, speed, blocks)))
        for policy in args.policies:
            ours = row_of(run_ours(trace, Case(policy, speed, blocks), slo))
            goals = GOALS if is_recorded and (speed, blocks) == (1, LARGE) else {}
            missed = set(find_missed(ours, baseline, goals, is_strict=blocks >= LARGE)) if baseline else set()
            show(f"`{policy}`", ours, missed)
            if baseline:
                ratios = (f"{ours[name] / baseline[name]:.3f}" if baseline[name] else "" for name in COLUMNS)
                print("| ratio | " + " | ".join(ratios) + " |")
        sys.stdout.flush()


class Kept:
    """Dynamo's summaries, in a file if there is one: by trace and SLO, then by case, one for each run."""

    def __init__(self, path: Path | None, trace: Path, num_requests: int, slo: Slo) -> None:
        digest = hashlib.sha256(trace.read_bytes()).hexdigest()[:16]
        key = f"{trace.name} {digest}, {num_requests} requests, TTFT {slo.ttft_ms:g}, ITL {slo.itl_ms:g}"
        self._slo = slo
        self._path = path
        self._all: dict[str, dict[str, list[dict]]] = json.loads(path.read_text()) if path and path.exists() else {}
        self._summaries = self._all.setdefault(key, {})

    def add(self, cases: list[Case], trace: Path, python: Path, num_requests: int | None) -> None:
        """Run each case as often as it is among `cases`, less what is there already, and write each result down."""
        there = Counter({case: len(self._summaries.get(str(case), ())) for case in cases})
        missing = list((Counter(cases) - there).elements())
        if not missing:
            return
        for case, summary in zip(missing, run_dynamo(trace, python, num_requests, missing, self._slo), strict=True):
            self._summaries.setdefault(str(case), []).append(summary)
            if self._path:
                self._path.write_text(json.dumps(self._all, indent=1))

    def rows(self, case: Case) -> list[Row]:
        """Return the numbers of each run of a case; empty if there was none."""
        return [
            {name: summary[column.dynamo] * column.scale for name, column in COLUMNS.items()}
            for summary in self._summaries.get(str(case), ())
        ]


def median_of(rows: list[Row]) -> Row:
    """Return the median of each number; nothing of no rows."""
    return {name: statistics.median(row[name] for row in rows) for name in COLUMNS} if rows else {}


def row_of(report: Report) -> Row:
    """Return our numbers. Hits are prompt tokens found in the worker's cache or pulled from another's."""
    ttft = report.ttft_ms
    values = (
        ttft.mean,
        ttft.p50,
        ttft.p90,
        ttft.p99,
        report.e2e_ms.mean,
        report.itl_ms.p50,
        100 * report.prefix_hit_ratio,
        report.goodput,
    )
    return dict(zip(COLUMNS, values, strict=True))


def find_missed(ours: Row, theirs: Row, goals: Row, *, is_strict: bool) -> Iterator[str]:
    """Yield the columns in which we miss a target. With `goals`, they take the place of the comparison, but for ITL."""
    if ours["ITL p50"] > MOST_ITL * theirs["ITL p50"]:
        yield "ITL p50"
    for name in goals or AGAINST:
        sign = -1 if COLUMNS[name].is_higher_better else 1
        excess = sign * (ours[name] - (goals or theirs)[name])
        if excess > 0 or (is_strict and not goals and excess == 0):
            yield name


def show_runs(title: str, rows: list[Row]) -> None:
    """Print the median of some runs, and in what range they are."""
    show(title, median_of(rows))
    if len(rows) > 1:
        for word, choose in (("from", min), ("to", max)):
            show(f"{word}, of {len(rows)} runs", {name: choose(row[name] for row in rows) for name in COLUMNS})


def show(title: str, row: Row, missed: set[str] = frozenset()) -> None:
    """Print one line of a table."""
    cells = []
    for name, column in COLUMNS.items():
        number = f"{row[name]:,.{column.digits}f}" if row else ""
        cells.append(number + " !" * (name in missed))
    print(f"| {title} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
