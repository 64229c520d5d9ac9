"""Chaos on the development cluster: load, faults from one seed, and invariants afterwards.

    python -m tests.chaos --seed 7 --minutes 10 [--workers 4] [--engine mock]
    python -m tests.chaos --seed 7 --forever --minutes 10     seed after seed, until an invariant does not hold

Needs root and Debian's slurm-wlm and munge, as the development cluster does. The plan is printed first; the same
options give the same plan. Exits with 1 if an invariant did not hold, and leaves logs and report then.
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.daemons import CannotBoot
from tests.chaos.faults.fault import Fault
from tests.chaos.faults.kinds import FAULTS
from tests.chaos.plan import WALLTIMES, Plan, draw_plan
from tests.chaos.report import Report
from tests.chaos.run import run_plan

_NOT_BY_DEFAULT: frozenset[str] = frozenset()


def main(argv: list[str] | None = None) -> int:
    """Run and print; return the exit code."""
    options = _parse(argv)
    faults = _chosen(options)
    seed = options.seed
    until = time.monotonic() + options.hours * 3600
    while True:
        code = _one(seed, options, faults)
        if code or not options.forever or time.monotonic() > until:
            return code
        seed += 1


def _one(seed: int, options: argparse.Namespace, faults: dict[str, Fault]) -> int:
    plan = _plan(seed, options, faults)
    print(*plan.lines(), sep="\n", flush=True)
    if options.dry_run:
        return 0
    keep = Path(options.keep or tempfile.mkdtemp(prefix="chaos-")) / f"seed-{seed}"
    try:
        report = asyncio.run(_run(plan, faults, _replay(seed, options), keep))
    except CannotBoot as err:
        print(err)
        return 4
    print(report.text(), end="", flush=True)
    if not report.violations and not options.keep:
        shutil.rmtree(keep.parent)
    return int(bool(report.violations))


async def _run(plan: Plan, faults: dict[str, Fault], replay: str, keep: Path) -> Report:
    """Run it; whoever ends this process has everything taken down."""
    running = asyncio.create_task(run_plan(plan, faults, replay, keep))
    for sign in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(sign, _cancel_once, running)
    return await running


def _cancel_once(running: asyncio.Task[Report]) -> None:
    """A second signal must not cut short the taking down."""
    if not running.cancelling():
        running.cancel()


def _plan(seed: int, options: argparse.Namespace, faults: dict[str, Fault]) -> Plan:
    return draw_plan(
        seed,
        options.minutes * 60,
        list(faults.values()),
        engine=options.engine,
        num_workers=options.workers,
        num_clients=options.clients,
        mean_gap_s=options.gap,
        beside="nothing" if options.engine == "vllm" else options.beside,
        walltimes=[None] if options.engine == "vllm" else WALLTIMES,  # loading takes a good part of the shortest ones
    )


def _chosen(options: argparse.Namespace) -> dict[str, Fault]:
    unknown = {*options.only, *options.without} - FAULTS.keys()
    if unknown:
        sys.exit(f"no such fault: {', '.join(sorted(unknown))}; there are: {', '.join(FAULTS)}")
    wanted = set(options.only) or FAULTS.keys() - _NOT_BY_DEFAULT
    if options.engine == "mock":
        wanted = wanted - {"kill-engine-core"}  # a mock is a part of its agent
    return {name: fault for name, fault in FAULTS.items() if name in wanted and name not in options.without}


def _replay(seed: int, options: argparse.Namespace) -> str:
    words = ["python", "-m", "tests.chaos", "--seed", str(seed), "--minutes", f"{options.minutes:g}"]
    words += ["--workers", str(options.workers), "--engine", options.engine, "--clients", str(options.clients)]
    words += ["--gap", f"{options.gap:g}"]
    words += ["--beside", options.beside] if options.beside else []
    words += ["--only", *options.only] if options.only else []
    words += ["--without", *options.without] if options.without else []
    return shlex.join(words)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=10.0, help="of load")
    parser.add_argument("--workers", type=int, default=4, help="at most eight, one a node")
    parser.add_argument("--engine", choices=["mock", "vllm"], default="mock")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--gap", type=float, default=12.0, help="seconds between two faults, on average")
    parser.add_argument("--beside", choices=["nothing", "run", "uploaded", "both"], help="batches; default: drawn")
    parser.add_argument("--only", nargs="+", default=[], metavar="FAULT", help="these faults only")
    parser.add_argument("--without", nargs="+", default=[], metavar="FAULT", help="not these faults")
    parser.add_argument("--forever", action="store_true", help="seed after seed")
    parser.add_argument("--hours", type=float, default=1e9, help="with --forever: no new seed after that")
    parser.add_argument("--keep", help="directory for logs and reports; default: kept after a violation only")
    parser.add_argument("--dry-run", action="store_true", help="print the plan only")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
