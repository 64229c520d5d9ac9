"""What `hpcserve batch run` does a second, and what it costs: lines/s, CPU a line of the driver, its memory.

    python tests/benchmarks/batch_run.py --lines 50000 --tokens 8 --over dask

Deploys two mock engines that take no time, so what is measured is everything but engines: the driver, the head, the
frontend, the agents. Memory is at its largest; checking the input is timed apart. `--lines 1000000` takes a while.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

HPCSERVE = str(Path(sys.executable).with_name("hpcserve"))


def write_input(path: Path, num_lines: int, num_tokens: int) -> None:
    with path.open("w") as file:
        for number in range(num_lines):
            messages = [{"role": "user", "content": f"Question {number}: what is {number} times {number + 1}?"}]
            body = {"model": "mock", "messages": messages, "max_tokens": num_tokens, "temperature": 0}
            line = {"custom_id": f"request-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=50_000)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--concurrency", type=int)
    parser.add_argument("--over", choices=("dask", "http"), default="dask", help="Dask tasks, or the endpoint")
    parser.add_argument("--up", nargs=argparse.REMAINDER, default=[], help="further options of `hpcserve up`")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hb-") as root:
        others = {name: value for name, value in os.environ.items() if not name.startswith("HPCSERVE_")}
        env = others | {"HPCSERVE_STATE_DIR": f"{root}/state"}
        given, output = Path(root, "in.jsonl"), Path(root, "out.jsonl")
        write_input(given, args.lines, args.tokens)
        up = [HPCSERVE, "up", "--detach", "--json", "--port", "0", "--cluster", "local", "--engine", "mock"]
        up += ["--nodes", "2", "--set", "engine.mock.speedup=.inf", *args.up]
        status = json.loads(subprocess.run(up, env=env, check=True, capture_output=True, timeout=120).stdout)
        try:
            measure(given, output, env, args, others_of(status))
        finally:
            subprocess.run([HPCSERVE, "down", "--force"], env=env, check=True, capture_output=True, timeout=60)


def others_of(status: dict[str, Any]) -> dict[str, list[psutil.Process]]:
    """Return the processes of a deployment by what they are."""
    agents = [psutil.Process(worker["pid"]) for worker in status["workers"]]
    return {
        "head": [psutil.Process(status["head_pid"])],
        "frontend": [psutil.Process(status["frontend_pid"])],
        "agents": agents,
    }


def cpu_s(processes: list[psutil.Process]) -> float:
    return sum(sum(each.cpu_times()[:2]) for each in processes)


def measure(
    given: Path, output: Path, env: dict[str, str], args: argparse.Namespace, others: dict[str, list[psutil.Process]]
) -> None:
    command = [HPCSERVE, "batch", "run", str(given), "-o", str(output), "--json", "--over", args.over]
    command += ["--concurrency", str(args.concurrency)] if args.concurrency else []
    before = {name: cpu_s(processes) for name, processes in others.items()}
    started = time.monotonic()
    done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, timeout=7200)
    wall_s = time.monotonic() - started
    used = resource.getrusage(resource.RUSAGE_CHILDREN)  # of the largest child: `up` and `down` are smaller
    told = json.loads(done.stdout)
    cpu_us = (used.ru_utime + used.ru_stime) / args.lines * 1e6
    assert sum(1 for _ in output.open("rb")) == args.lines
    print(f"{args.lines:,} lines in {wall_s:.1f} s, {wall_s - told['seconds']:.1f} s of them before the first was sent")
    print(f"{told['requests_per_s']:,.0f} lines/s; a million in {1e6 / args.lines * wall_s / 60:.1f} min")
    print(f"driver: {cpu_us:.0f} us of CPU a line, {used.ru_maxrss / 1024:.0f} MiB at most")
    for name, processes in others.items():
        cost_us = (cpu_s(processes) - before[name]) / args.lines * 1e6
        size = max(each.memory_info().rss for each in processes) / 2**20
        print(f"{name}: {cost_us:.0f} us of CPU a line, {size:.0f} MiB at the end")


if __name__ == "__main__":
    main()
