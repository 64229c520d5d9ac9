"""Compares `hpcserve simulate` with Dynamo's offline replay on one trace; prints both and the differences in percent.

Run: python -m tests.benchmarks.simulate_against_dynamo --trace FILE --dynamo-python PYTHON [--requests N]

The trace is Mooncake JSONL (or $HPCSERVE_TRACE). PYTHON (or $HPCSERVE_DYNAMO_PYTHON) is the interpreter of a virtual
environment of its own that has Dynamo:

    python -m venv dynamo
    dynamo/bin/pip install --no-deps ai-dynamo==1.6.1 ai-dynamo-runtime==1.6.1
    dynamo/bin/pip install aiohttp msgspec prometheus-client pyzmq 'redis<9' tqdm transformers zstandard \
        'pydantic<=2.13.5' uvloop

8 workers that prefill and decode, blocks of 64 tokens, speeds 1 and 2, 4,096 and 16,384 blocks. Under `round_robin`
both choose the same workers, so what differs is the engine model, by 3 % at most or the exit code is 1. Under `kv` the
routers differ too: those rows are for information.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from hpcserve.config.models import RouterConfig
from hpcserve.engine.mock.scheduler import Limits
from hpcserve.simulate import Report, Scenario, TraceRequest, load_trace, replay

LIMIT_PERCENT = 3.0
NUM_WORKERS = 8
SPEEDS = (1.0, 2.0)
BLOCKS = (4096, 16384)
MODES = {"round_robin": "round_robin", "kv": "kv_router"}  # hpcserve's policy to Dynamo's router mode
COLUMNS = {
    "TTFT mean": ("mean_ttft_ms", lambda r: r.ttft_ms.mean),
    "TTFT p50": ("median_ttft_ms", lambda r: r.ttft_ms.p50),
    "TTFT p90": ("p90_ttft_ms", lambda r: r.ttft_ms.p90),
    "ITL p50": ("median_itl_ms", lambda r: r.itl_ms.p50),
    "hits %": ("prefix_cache_reused_ratio", lambda r: r.prefix_hit_ratio),
    "TTFT p99": ("p99_ttft_ms", lambda r: r.ttft_ms.p99),
    "ITL mean": ("mean_itl_ms", lambda r: r.itl_ms.mean),
    "e2e mean": ("mean_e2e_latency_ms", lambda r: r.e2e_ms.mean),
}
"""Dynamo's key, and ours; the first five are those with a limit."""
NUM_LIMITED = 5

REPLAY = """
import json, os, sys
os.environ["DYN_LOG"] = "error"
from dynamo.llm import KvRouterConfig
from dynamo.replay import run_trace_replay
trace, workers, cases = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
for mode, speed, blocks in cases:
    router = {"router_config": KvRouterConfig()} if mode == "kv_router" else {}
    report = run_trace_replay(
        trace, num_workers=workers, router_mode=mode, trace_block_size=512, arrival_speedup_ratio=speed,
        extra_engine_args={"engine": {"num_gpu_blocks": blocks}}, **router)
    print("RESULT " + json.dumps(report.summary), flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, default=os.environ.get("HPCSERVE_TRACE"))
    parser.add_argument("--dynamo-python", type=Path, default=os.environ.get("HPCSERVE_DYNAMO_PYTHON"))
    parser.add_argument("--requests", type=int, help="only the first N")
    parser.add_argument("--policies", nargs="+", choices=MODES, default=list(MODES))
    args = parser.parse_args()
    if args.trace is None:
        print("no trace: give --trace FILE or set HPCSERVE_TRACE (Mooncake JSONL)")
        return
    if args.dynamo_python is None or not args.dynamo_python.exists():
        print(f"no Dynamo at {args.dynamo_python}: give --dynamo-python or set HPCSERVE_DYNAMO_PYTHON.\n\n{__doc__}")
        return
    compare(args.trace, args.dynamo_python, args.requests, args.policies)


def compare(path: Path, python: Path, num_requests: int | None, policies: list[str]) -> None:
    trace = load_trace(path, num_requests)
    cases = list(product(policies, SPEEDS, BLOCKS))
    worst = 0.0
    for (policy, speed, blocks), theirs in zip(cases, dynamo(path, python, num_requests, cases), strict=True):
        started = time.perf_counter()
        ours = simulate(trace, policy, speed, blocks)
        wall_s = time.perf_counter() - started
        differences = show(f"{policy}, speed {speed:g}, {blocks:,} blocks", ours, theirs, wall_s)
        if policy == "round_robin":
            worst = max(worst, *map(abs, differences[:NUM_LIMITED]))
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\npeak memory of ours: {peak_mb:.0f} MB")
    if "round_robin" in policies:
        print(f"largest difference under round_robin, first {NUM_LIMITED} columns: {worst:.2f} % of {LIMIT_PERCENT} %")
        sys.exit(worst > LIMIT_PERCENT)


def simulate(trace: list[TraceRequest], policy: str, speed: float, blocks: int) -> Report:
    limits = Limits(num_blocks=blocks, block_size=64, max_num_seqs=256, max_batched_tokens=8192)
    router = RouterConfig(policy=policy)
    return replay(Scenario(workers=NUM_WORKERS, router=router, limits=limits, speed=speed), trace)


def dynamo(path: Path, python: Path, num_requests: int | None, cases: list[tuple[str, float, int]]) -> Iterator[dict]:
    """Yield the summary of each case. Dynamo reads plain files only."""
    data = path.read_bytes()
    lines = (gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data).splitlines(keepends=True)
    with tempfile.TemporaryDirectory() as directory:
        plain = Path(directory) / "trace.jsonl"
        plain.write_bytes(b"".join(lines[:num_requests]))
        given = json.dumps([(MODES[policy], speed, blocks) for policy, speed, blocks in cases])
        command = [python, "-c", REPLAY, str(plain), str(NUM_WORKERS), given]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=900)
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            yield json.loads(line.removeprefix("RESULT "))


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
