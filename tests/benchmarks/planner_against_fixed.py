"""The planner against every fixed fleet, in virtual time, on loads that change: worker-hours at the same goodput.

Run: python -m tests.benchmarks.planner_against_fixed [--third-s 900] [--least 3] [--most 7] [--load step]
     [--mode split] [--from-workers 4] [--seed 2]

`step`: made-up conversations (`synthetic_trace.py`) that come three times as often in the middle third. `shift`: the
same step, and from the middle of it on short prompts with long answers instead of long ones with short answers.
Aggregated fleets of every size and split ones of every size and split are replayed; the planner is given the smallest
fleets to begin with (`--from-workers`: such a fleet, and never fewer), no word of what comes, and workers that take a
minute to come. Needs no GPU and no cluster.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from itertools import count

from hpcserve.config.models import RouterConfig
from hpcserve.config.planning_models import PlannerConfig
from hpcserve.simulate import Report, Scenario, TraceRequest, replay
from hpcserve.simulate.planned import replay_planned
from hpcserve.simulate.trace import TRACE_BLOCK
from tests.benchmarks.synthetic_trace import requests

TTFT_MS, ITL_MS = 2000.0, 20.0
GOAL = f"TTFT {TTFT_MS:g} ms and ITL {ITL_MS:g} ms"


def make_load(name: str, third_s: float, seed: int) -> list[TraceRequest]:
    """Return a load of three equally long parts."""
    rng = random.Random(seed)
    return [
        TraceRequest(at, num_prompt, num_output, ids)
        for at, num_prompt, num_output, ids in _changed(name, third_s, seed, rng)
    ]


def _changed(name: str, third_s: float, seed: int, rng: random.Random) -> Iterator[tuple]:
    own = count(10**9)  # names of blocks that are asked for once
    for request in requests(100_000, 1.2, seed):
        at = _compressed(request["timestamp"] / 1000, third_s)
        if at > 3 * third_s:
            return
        num_prompt, num_output, ids = request["input_length"], request["output_length"], tuple(request["hash_ids"])
        if name == "shift":
            if at > 1.5 * third_s:
                num_prompt, num_output = min(num_prompt, 2 * TRACE_BLOCK), 1000 + round(num_output * rng.uniform(2, 6))
                ids = (next(own), next(own))
            else:
                num_output = min(num_output, 60)
        yield at, num_prompt, num_output, ids


def _compressed(at: float, third_s: float) -> float:
    """Return when something comes: the middle third holds what was recorded in three times its length."""
    if at <= third_s:
        return at
    return third_s + (at - third_s) / 3 if at <= 4 * third_s else at - 2 * third_s


def scenario(workers: int = 0, prefill: int = 0, decode: int = 0) -> Scenario:
    """Return a fleet to be replayed as it is, or to begin with: the planner never goes below it."""
    least = max(1, workers + prefill + decode)
    planner = PlannerConfig(ttft_ms=TTFT_MS, itl_ms=ITL_MS, min_workers=least, max_workers=16, shrink_s=240.0)
    return Scenario(
        workers=workers,
        prefill=prefill,
        decode=decode,
        router=RouterConfig(),
        planner=planner,
        slo_ttft_ms=TTFT_MS,
        slo_itl_ms=ITL_MS,
        start_s=60.0,
    )


def show(label: str, report: Report, more: str = "") -> None:
    print(
        f"{label:28} {report.slo_attainment:7.1%} {report.goodput:8.2f}/s {report.worker_hours:8.2f} h"
        f"   TTFT p90 {report.ttft_ms.p90:7,.0f}  ITL p90 {report.itl_ms.p90:5.1f} ms  {more}",
        flush=True,
    )


def compare(load: list[TraceRequest], fleets: list[Scenario], start: Scenario) -> None:
    """Replay the load on fixed fleets, and with the planner from `start` on."""
    planned = replay_planned(start, load)
    kinds = [change.kind for change in planned.changes]
    more = f"{planned.least_workers} to {planned.most_workers} workers, {kinds.count('flip')} flips"
    show(f"planned, from {start.size}", planned.report, more)
    reports = []
    for each in fleets:
        reports.append(replay(each, load))
        show(f"fixed {reports[-1].workers}", reports[-1])
    equals = [report for report in reports if report.goodput >= planned.report.goodput]
    best = min(equals, key=lambda report: report.worker_hours, default=None)
    if best is None:
        print("none of these fixed fleets has its goodput")
        return
    saved = 1 - planned.report.worker_hours / best.worker_hours
    print(
        f"the smallest fixed fleet with its goodput: {best.workers}, {best.worker_hours:.2f} h; {saved:.0%} are saved"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--third-s", type=float, default=900.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--least", type=int, default=3, help="of the fixed fleets")
    parser.add_argument("--most", type=int, default=7)
    parser.add_argument("--from-workers", type=int, default=0, help="that the planner begins with, and keeps")
    parser.add_argument("--load", nargs="+", choices=("step", "shift"), default=["step", "shift"])
    parser.add_argument("--mode", nargs="+", choices=("aggregated", "split"), default=["aggregated", "split"])
    args = parser.parse_args()
    numbers = range(args.least, args.most + 1)
    for name in args.load:
        load = make_load(name, args.third_s, args.seed)
        for mode in args.mode:
            print(
                f"\n{name}, {mode}: {len(load):,} requests in {3 * args.third_s:,.0f} s, objectives {GOAL}", flush=True
            )
            if mode == "aggregated":
                compare(load, [scenario(workers=num) for num in numbers], scenario(workers=max(1, args.from_workers)))
            else:
                splits = [scenario(prefill=p, decode=num - p) for num in numbers for p in range(1, num)]
                compare(load, splits, scenario(prefill=1, decode=max(1, args.from_workers - 1)))


if __name__ == "__main__":
    main()
