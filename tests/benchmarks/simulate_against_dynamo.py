"""Compares `hpcserve simulate` with Dynamo's offline replay on one trace; prints both and the differences in percent.

Run: python -m tests.benchmarks.simulate_against_dynamo --trace FILE --dynamo-python PYTHON [--requests N]

The trace is Mooncake JSONL (or $HPCSERVE_TRACE). PYTHON (or $HPCSERVE_DYNAMO_PYTHON) is the interpreter of a virtual
environment that has Dynamo; `dynamo_replay.py` says how to make one.

8 workers that prefill and decode, blocks of 64 tokens, speeds 1 and 2, 4,096 and 16,384 blocks. Under `round_robin`
both choose the same workers, so what differs is the engine model, by 3 % at most or the exit code is 1. Under `kv` the
routers differ too: those rows are for information.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from itertools import product
from pathlib import Path

from hpcserve.simulate import Report, load_trace
from tests.benchmarks.dynamo_replay import Case, add_arguments, find_problem, run_dynamo, run_ours

LIMIT_PERCENT = 3.0
SPEEDS = (1.0, 2.0)
BLOCKS = (4096, 16384)
MODES = {"round_robin": "round_robin", "kv": "kv_router"}  # hpcserve's policy to Dynamo's router mode
COLUMNS = {
    "TTFT mean": ("mean_ttft_ms", lambda r: r.ttft_ms.mean),
    "TTFT p50": ("median_ttft_ms", lambda r: r.ttft_ms.p50),
    "TTFT p90": ("p90_ttft_ms", lambda r: r.ttft_ms.p90),
    "ITL p50": ("median_itl_ms", lambda r: r.itl_ms.p50),
    "hits %": ("prefix_cache_reused_ratio", lambda r: r.own_hit_ratio),
    "TTFT p99": ("p99_ttft_ms", lambda r: r.ttft_ms.p99),
    "ITL mean": ("mean_itl_ms", lambda r: r.itl_ms.mean),
    "e2e mean": ("mean_e2e_latency_ms", lambda r: r.e2e_ms.mean),
}
"""Dynamo's key, and ours; the first five are those with a limit."""
NUM_LIMITED = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--policies", nargs="+", choices=MODES, default=list(MODES))
    args = parser.parse_args()
    problem = find_problem(args.trace, args.dynamo_python)
    if problem:
        print(problem)
        return
    compare(args.trace, args.dynamo_python, args.requests, args.policies)


def compare(path: Path, python: Path, num_requests: int | None, policies: list[str]) -> None:
    trace = load_trace(path, num_requests)
    cases = [Case(*case) for case in product(policies, SPEEDS, BLOCKS)]
    theirs_of = run_dynamo(path, python, num_requests, [case._replace(router=MODES[case.router]) for case in cases])
    worst = 0.0
    for case, theirs in zip(cases, theirs_of, strict=True):
        started = time.perf_counter()
        ours = run_ours(trace, case)
        differences = show(str(case), ours, theirs, time.perf_counter() - started)
        if case.router == "round_robin":
            worst = max(worst, *map(abs, differences[:NUM_LIMITED]))
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\npeak memory of ours: {peak_mb:.0f} MB")
    if "round_robin" in policies:
        print(f"largest difference under round_robin, first {NUM_LIMITED} columns: {worst:.2f} % of {LIMIT_PERCENT} %")
        sys.exit(worst > LIMIT_PERCENT)


def show(title: str, ours: Report, theirs: dict, wall_s: float) -> list[float]:
    """Print one case, and return the differences in percent."""
    pairs = [(value(ours), theirs[key]) for key, value in COLUMNS.values()]
    differences = [100 * (mine / other - 1) for mine, other in pairs]
    scales = [100 if name == "hits %" else 1 for name in COLUMNS]
    print(f"\n{title}: {theirs['wall_time_ms'] / 1000:.1f} s for Dynamo, {wall_s:.1f} s for ours")
    print("          " + "".join(f"{name:>12}" for name in COLUMNS))
    print("  dynamo  " + "".join(f"{other * s:12.2f}" for (_, other), s in zip(pairs, scales, strict=True)))
    print("  ours    " + "".join(f"{mine * s:12.2f}" for (mine, _), s in zip(pairs, scales, strict=True)))
    print("  percent " + "".join(f"{difference:+12.2f}" for difference in differences), flush=True)
    return differences


if __name__ == "__main__":
    main()
