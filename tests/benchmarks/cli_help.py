"""Times `hpcserve --help` as a process, against an interpreter that does nothing. Fails over 0.3 s.

python -m tests.benchmarks.cli_help [RUNS]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

LIMIT_S = 0.3


def seconds(command: list[str], runs: int) -> list[float]:
    """Wall-clock time of each run, after one that fills the file cache."""
    taken = []
    for _ in range(runs + 1):
        started = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        taken.append(time.perf_counter() - started)
    return sorted(taken[1:])


def main() -> int:
    """Print the two and return whether help is too slow."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=int, nargs="?", default=20)
    runs = parser.parse_args().runs
    hpcserve = str(Path(sys.executable).with_name("hpcserve"))
    median = 0.0
    for label, command in (
        ("python -c pass", [sys.executable, "-c", "pass"]),
        ("hpcserve --help", [hpcserve, "--help"]),
    ):
        taken = seconds(command, runs)
        median = statistics.median(taken)
        print(f"{label:<16} median {median:.3f} s, slowest of {runs} {taken[-1]:.3f} s")
    return int(median > LIMIT_S)


if __name__ == "__main__":
    sys.exit(main())
