"""A batch that is longer than its job's walltime: real ends of walltime, requeued until all is done.

    eval "$(slurm/devcluster up)" && python -m tests.benchmarks.batch_walltime --lines 600 --walltime 00:02:00

Submits one job of two mock workers that take their time, watches it to the end, and prints how often it was requeued
and that each request has one answer. 600 lines take about four minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HPCSERVE = str(Path(sys.executable).with_name("hpcserve"))
_LOOK_S = 2.0
_SLOW = ("--set", "engine.mock.speedup=0.25", "--set", "engine.mock.max_num_seqs=16", "--concurrency", "32")


def write_input(path: Path, num_lines: int) -> None:
    with path.open("w") as file:
        for number in range(num_lines):
            messages = [{"role": "user", "content": "word " * (number % 50 + 3)}]
            body = {"model": "mock", "messages": messages, "max_tokens": 400, "ignore_eos": True}
            line = {"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")


def is_queued(job: str) -> bool:
    shown = subprocess.run(("squeue", "--noheader", f"--jobs={job}"), capture_output=True, text=True, check=False)
    return bool(shown.stdout.strip())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=600)
    parser.add_argument("--walltime", default="00:02:00")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hw-") as root:
        directory = Path(root)
        write_input(directory / "in.jsonl", args.lines)
        env = os.environ | {"HPCSERVE_STATE_DIR": f"{root}/state"}
        submit = [HPCSERVE, "batch", "submit", f"{root}/in.jsonl", "-o", f"{root}/out.jsonl", "--nodes", "2"]
        submit += ["--time", args.walltime, "--requeue", "--engine", "mock", "--set", "cluster.interface=lo", *_SLOW]
        began = time.monotonic()
        job = subprocess.run(submit, env=env, check=True, capture_output=True, text=True).stdout.strip()
        try:
            while is_queued(job):
                time.sleep(_LOOK_S)
        finally:
            subprocess.run(("scancel", job), check=False)
        log = (directory / f"out.slurm-{job}.log").read_text()
        ids = [json.loads(line)["custom_id"] for line in (directory / "out.jsonl").open()]
        print(f"{args.lines} requests in {time.monotonic() - began:.0f} s, jobs of {args.walltime}")
        num = log.count("requeued: the job goes on")
        print(f"requeued {num} times; {len(ids)} answers, {len(set(ids))} of them different")
        if sorted(ids) != sorted(f"r{number}" for number in range(args.lines)):
            raise SystemExit("requests are missing or there twice")


if __name__ == "__main__":
    main()
