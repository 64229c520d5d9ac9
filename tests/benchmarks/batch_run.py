"""What `hpcserve batch run` does a second, and what it costs: lines/s, CPU a line of the driver, its memory.

    python tests/benchmarks/batch_run.py --lines 50000 --tokens 8

Deploys two mock engines that take no time, so what is measured is everything but engines: the driver, the frontend, the
routing, the agents. Memory is of the driver alone, at its largest; checking the input is timed apart.
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
    parser.add_argument("--up", nargs=argparse.REMAINDER, default=[], help="further options of `hpcserve up`")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hb-") as root:
        others = {name: value for name, value in os.environ.items() if not name.startswith("HPCSERVE_")}
        env = others | {"HPCSERVE_STATE_DIR": f"{root}/state"}
        given, output = Path(root, "in.jsonl"), Path(root, "out.jsonl")
        write_input(given, args.lines, args.tokens)
        up = [HPCSERVE, "up", "--detach", "--json", "--port", "0", "--cluster", "local", "--engine", "mock"]
        up += ["--nodes", "2", "--set", "engine.mock.speedup=.inf", *args.up]
        subprocess.run(up, env=env, check=True, capture_output=True, timeout=120)
        try:
            measure(given, output, env, args)
        finally:
            subprocess.run([HPCSERVE, "down", "--force"], env=env, check=True, capture_output=True, timeout=60)


def measure(given: Path, output: Path, env: dict[str, str], args: argparse.Namespace) -> None:
    command = [HPCSERVE, "batch", "run", str(given), "-o", str(output), "--json"]
    command += ["--concurrency", str(args.concurrency)] if args.concurrency else []
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


if __name__ == "__main__":
    main()
