"""A deployment under full load for minutes: does memory stay flat, does anything leak, does the log stay quiet?

    python -m tests.benchmarks.soak [--minutes 1] [--connections 256] [--tokens 64]

Mock engines that take no time, keys and everything else on, wrk's streamed chats, in slices. After each slice, which
leaves every connection cut in mid-stream: memory and open files of each process, and requests that still run. Exits
with 1 if the log has a warning, a request is left, or a process's memory in the last half of the run grows by more than
1 MB a minute.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpcserve.engine.tiny_model import make_tiny_model
from tests.benchmarks import process_cpu, serving_systems, wrk_load
from tests.benchmarks.serving_systems import MODEL, System

_SLICE_S = 20.0
_QUIET_S = 3.0
_MAX_GROWTH_MB_A_MINUTE = 1.0
_BAD = re.compile(r"\b(WARNING|ERROR|CRITICAL)\b|Traceback")


@dataclass(frozen=True)
class Sample:
    """What was seen after one slice."""

    at_min: float
    tokens_per_s: float
    rss_mb: dict[int, float]
    num_files: dict[int, int]
    num_left: float  # requests that the frontend or an engine still had


def main() -> int:
    """Run and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--connections", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    if problem := wrk_load.find_problem():
        print(problem)
        return 0
    with tempfile.TemporaryDirectory(prefix="hs-") as name:
        directory = Path(name)
        make_tiny_model(directory / "model")
        with serving_systems.hpcserve(directory, directory / "model") as system:
            samples = list(_soak(directory, system, options.minutes, options.connections, options.tokens))
            complaints = _complaints(directory / "state")
    return _judge(system, samples, complaints)


def _soak(directory: Path, system: System, minutes: float, connections: int, tokens: int) -> Iterable[Sample]:
    one = wrk_load.sample(system.port, MODEL, system.key, tokens)
    began = time.monotonic()
    pids = [*system.frontend, *system.others, *system.engines]
    while (at_min := (time.monotonic() - began) / 60) < minutes:
        load = wrk_load.run_wrk(
            directory, system.url, model=MODEL, key=system.key, connections=connections, max_tokens=tokens,
            seconds=_SLICE_S, bytes_a_token=one.bytes_a_token,
        )  # fmt: skip
        time.sleep(_QUIET_S)
        rss_mb = {pid: process_cpu.rss_mb([pid]) for pid in pids}
        num_files = {pid: len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids}
        sample = Sample(at_min, load.tokens / load.duration_s, rss_mb, num_files, _num_left(system))
        print(
            f"{at_min:5.1f} min {sample.tokens_per_s:8,.0f} tokens/s, errors {load.num_errors}, frontend "
            f"{rss_mb[system.frontend[0]]:.1f} MB {num_files[system.frontend[0]]} files, left {sample.num_left:g}",
            flush=True,
        )
        yield sample


def _num_left(system: System) -> float:
    request = urllib.request.Request(f"{system.url}/metrics", headers={"Authorization": f"Bearer {system.key}"})
    with urllib.request.urlopen(request, timeout=10) as reply:
        lines = reply.read().decode().splitlines()
    names = ("hpcserve_inflight_requests", "hpcserve_worker_num_requests_running", "hpcserve_waiting_requests")
    return sum(float(line.split()[-1]) for line in lines if line.startswith(names))


def _complaints(state: Path) -> list[str]:
    logs = sorted(state.rglob("*.log"))
    return [f"{log.stem}: {line}" for log in logs for line in log.read_text().splitlines() if _BAD.search(line)]


def _judge(system: System, samples: list[Sample], complaints: list[str]) -> int:
    is_bad = bool(complaints) or any(each.num_left for each in samples)
    roles = {"frontend": system.frontend, "head": system.others, "worker": system.engines}
    last_half = samples[len(samples) // 2 :]
    for role, pid in ((role, pid) for role, pids in roles.items() for pid in pids):
        minutes = [each.at_min for each in last_half]
        growth = float(np.polyfit(minutes, [each.rss_mb[pid] for each in last_half], 1)[0]) if len(minutes) > 2 else 0.0
        is_bad = is_bad or growth > _MAX_GROWTH_MB_A_MINUTE
        first, last = samples[0], samples[-1]
        print(
            f"{role:9} {first.rss_mb[pid]:7.1f} -> {last.rss_mb[pid]:7.1f} MB, {growth:+.2f} MB/min in the last half, "
            f"files {first.num_files[pid]} -> {last.num_files[pid]}"
        )
    print(f"{len(complaints)} warnings", *complaints[:20], sep="\n")
    return int(is_bad)


if __name__ == "__main__":
    sys.exit(main())
