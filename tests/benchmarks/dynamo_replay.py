"""One case of a trace under the same conditions by both: Dynamo's offline replay, and `hpcserve simulate`. No script.

Dynamo runs in an interpreter of its own, of a virtual environment that has it:

    python -m venv dynamo
    dynamo/bin/pip install --no-deps ai-dynamo==1.6.1 ai-dynamo-runtime==1.6.1
    dynamo/bin/pip install aiohttp msgspec prometheus-client pyzmq 'redis<9' tqdm transformers zstandard \
        'pydantic<=2.13.5' uvloop

Goodput is the same on both sides: requests a second, from the trace's beginning to the last token, whose time to first
token and whose mean time between tokens are at most those of the SLO (Dynamo's `goodput_request_throughput_rps`).
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from hpcserve.config.models import RouterConfig
from hpcserve.engine.mock.scheduler import Limits
from hpcserve.simulate import Report, Scenario, TraceRequest, replay

NUM_WORKERS = 8
BLOCK_SIZE = 64

_REPLAY = """
import json, os, sys
os.environ["DYN_LOG"] = "error"
from dynamo.llm import KvRouterConfig
from dynamo.replay import run_trace_replay
trace, workers = sys.argv[1], int(sys.argv[2])
(ttft_ms, itl_ms), cases = map(json.loads, sys.argv[3:])
for mode, speed, blocks in cases:
    router = {"router_config": KvRouterConfig()} if mode == "kv_router" else {}
    report = run_trace_replay(
        trace, num_workers=workers, router_mode=mode, trace_block_size=512, arrival_speedup_ratio=speed,
        extra_engine_args={"engine": {"num_gpu_blocks": blocks}}, sla_ttft_ms=ttft_ms, sla_itl_ms=itl_ms, **router)
    print("RESULT " + json.dumps(report.summary), flush=True)
"""


class Slo(NamedTuple):
    """What a good request keeps, in milliseconds; None: any is good."""

    ttft_ms: float | None = None
    itl_ms: float | None = None


ANY = Slo()


class Case(NamedTuple):
    """What is run. `router` is a policy of ours, or a router mode of Dynamo's: whose it is, the caller knows."""

    router: str
    speed: float
    blocks: int

    def __str__(self) -> str:
        return f"{self.router}, speed {self.speed:g}, {self.blocks:,} blocks"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Let the trace and Dynamo's interpreter be given, or come from the environment."""
    parser.add_argument("--trace", type=Path, default=os.environ.get("HPCSERVE_TRACE") or None, help="Mooncake JSONL")
    parser.add_argument("--dynamo-python", type=Path, default=os.environ.get("HPCSERVE_DYNAMO_PYTHON") or None)
    parser.add_argument("--requests", type=int, help="only the first N")


def find_problem(trace: Path | None, python: Path | None) -> str | None:
    """Return why nothing can be compared, or None."""
    if trace is None:
        return "skipped, no trace: give --trace FILE or set HPCSERVE_TRACE (Mooncake JSONL)"
    if not trace.exists():
        return f"skipped, no trace at {trace}"
    if python is None:
        return "skipped, no Dynamo: give --dynamo-python or set HPCSERVE_DYNAMO_PYTHON (dynamo_replay.py says how)"
    if not python.exists():
        return f"skipped, no Dynamo at {python}: dynamo_replay.py says how to install it"
    return None


def run_ours(trace: list[TraceRequest], case: Case, slo: Slo = ANY) -> Report:
    """Return what hpcserve's simulator makes of the trace."""
    limits = Limits(num_blocks=case.blocks, block_size=BLOCK_SIZE, max_num_seqs=256, max_batched_tokens=8192)
    router = RouterConfig(policy=case.router)
    scenario = Scenario(
        workers=NUM_WORKERS,
        router=router,
        limits=limits,
        speed=case.speed,
        slo_ttft_ms=slo.ttft_ms,
        slo_itl_ms=slo.itl_ms,
    )
    return replay(scenario, trace)


def run_dynamo(
    path: Path, python: Path, num_requests: int | None, cases: Sequence[Case], slo: Slo = ANY
) -> Iterator[dict]:
    """Yield the summary of each case when it is there. Dynamo reads plain files only. Raises if Dynamo fails."""
    data = path.read_bytes()
    lines = (gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data).splitlines(keepends=True)
    with tempfile.TemporaryDirectory() as directory:
        plain = Path(directory) / "trace.jsonl"
        plain.write_bytes(b"".join(lines[:num_requests]))
        command = [python, "-c", _REPLAY, str(plain), str(NUM_WORKERS), json.dumps(slo), json.dumps(cases)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                results = (line for line in process.stdout if line.startswith("RESULT "))
                for _ in cases:
                    yield json.loads(next(results).removeprefix("RESULT "))
            except StopIteration:
                raise RuntimeError(f"Dynamo ended with code {process.wait()} before its last case") from None
            finally:
                process.kill()
