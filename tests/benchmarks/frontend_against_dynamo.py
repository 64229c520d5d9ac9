"""hpcserve and Dynamo as whole deployments under the same load, in turn: tokens/s, latency, CPU and memory, as ratios.

    python -m tests.benchmarks.frontend_against_dynamo --dynamo-python DYNAMO/bin/python \
        [--vllm-router-python ROUTER/bin/python] [--tokens 64 256 1] [--connections 64 256 1024] [--seconds 8]

Both serve the same tiny model's tokenizer with four engines that take no time, to wrk's streamed chats of 2,000
characters, every prompt another. Of hpcserve everything is on: keys, metrics, KV router, log. Load and servers share
the machine, so rates depend on it; CPU is of the frontend process alone, by /proc, and hardly does. A token's CPU has
its share of the request in it.

With vllm-router the same load goes through it to hpcserve, and its CPU a token is that of passing chunks on.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks import process_cpu, serving_systems, wrk_load
from tests.benchmarks.serving_systems import MODEL, System
from tests.benchmarks.wrk_load import Load

_SLOWEST_TOKENS_PER_S = 15_000.0
_SETTLE_S = 10.0
_COLUMNS = (
    "tokens/s", "requests/s", "p50 ms", "p99 ms", "us/token", "us/request", "engines", "others", "MB", "errors"
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One load."""

    tokens: int  # of a reply
    connections: int


@dataclass(frozen=True)
class Cost:
    """What one system made of one load."""

    load: Load
    frontend_s: float  # CPU
    engines_s: float
    others_s: float
    rss_mb: float  # of the frontend, right after

    @property
    def tokens_per_s(self) -> float:
        return self.load.tokens / self.load.duration_s

    @property
    def requests_per_s(self) -> float:
        return self.load.requests / self.load.duration_s

    def us_a_token(self, cpu_s: float) -> float:
        return 1e6 * cpu_s / self.load.tokens

    @property
    def us_a_request(self) -> float:
        return 1e6 * self.frontend_s / max(1, self.load.requests)


def measure(directory: Path, system: System, cell: Cell, seconds: float) -> Cost:
    """Put one load on a system. The first replies, which say how long a token is, also warm it up."""
    one = wrk_load.sample(system.port, MODEL, system.key, cell.tokens)
    in_one_round = cell.connections * cell.tokens / _SLOWEST_TOKENS_PER_S
    before = [process_cpu.cpu_s(pids) for pids in (system.frontend, system.engines, system.others)]
    load = wrk_load.run_wrk(
        directory,
        system.url,
        model=MODEL,
        key=system.key,
        connections=cell.connections,
        max_tokens=cell.tokens,
        seconds=max(seconds, 1.5 * in_one_round),
        bytes_a_token=one.bytes_a_token,
    )
    after = [process_cpu.cpu_s(pids) for pids in (system.frontend, system.engines, system.others)]
    spent = [end - start for start, end in zip(before, after, strict=True)]
    rss_mb = process_cpu.rss_mb(system.frontend)
    _settle(system)
    return Cost(load, *spent, rss_mb)


def _settle(system: System) -> None:
    """Wait until what wrk left behind has ended: nothing is computed any more."""
    deadline = time.monotonic() + _SETTLE_S
    pids = [*system.frontend, *system.engines]
    while time.monotonic() < deadline:
        before = process_cpu.cpu_s(pids)
        time.sleep(0.5)
        if process_cpu.cpu_s(pids) - before < 0.1:
            return


def show(cell: Cell, costs: dict[str, Cost], names: Sequence[str]) -> None:
    """Print one load: a line a system, and ours over Dynamo's."""
    print(f"\n{cell.connections} connections, {cell.tokens} tokens a reply")
    columns = (
        "tokens/s",
        "requests/s",
        "p50 ms",
        "p99 ms",
        "us/token",
        "us/request",
        "engines",
        "others",
        "MB",
        "errors",
    )
    print(f"  {'':12}" + "".join(f"{each:>11}" for each in columns))
    rows = {name: _row(costs[name]) for name in names if name in costs}
    for name, row in rows.items():
        print(f"  {name:12}" + "".join(f"{_short(value):>11}" for value in row))
    if "hpcserve" in rows and "dynamo" in rows:
        pairs = zip(rows["hpcserve"], rows["dynamo"], strict=True)
        print(f"  {'ratio':12}" + "".join(f"{_ratio(ours, theirs):>11}" for ours, theirs in pairs), flush=True)


def _row(cost: Cost) -> tuple[float, ...]:
    return (
        cost.tokens_per_s,
        cost.requests_per_s,
        1e3 * cost.load.p50_s,
        1e3 * cost.load.p99_s,
        cost.us_a_token(cost.frontend_s),
        cost.us_a_request,
        cost.us_a_token(cost.engines_s),
        cost.us_a_token(cost.others_s),
        cost.rss_mb,
        cost.load.num_errors,
    )


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


def _ratio(ours: float, theirs: float) -> str:
    return f"{ours / theirs:.2f}" if theirs else ""


def run(system: System, directory: Path, cells: Iterable[Cell], seconds: float) -> dict[Cell, Cost]:
    found = {}
    for cell in cells:
        found[cell] = measure(directory, system, cell, seconds)
        cost = found[cell]
        print(
            f"{system.name} {cell}: {cost.tokens_per_s:,.0f} tokens/s, {cost.us_a_token(cost.frontend_s):.1f} us",
            flush=True,
        )
    return found


def ttft_line(system: System) -> str:
    one = wrk_load.sample(system.port, MODEL, system.key, 16)
    return f"{system.name}: time to first token of one client alone {1e3 * one.ttft_s:.2f} ms"


async def engine_ttft_s(model: Path) -> float:
    """Return the median time to the first token of the mock engine itself, called in this process."""
    from hpcserve.config import Config
    from hpcserve.engine.mock import MockEngine
    from hpcserve.engine.protocol import EngineContext
    from hpcserve.frontend.prompts.tokenizer import Tokenizer
    from hpcserve.types import EngineRequest, RequestId, Role, Sampling, WorkerId

    config = Config.model_validate(
        {"model": {"path": model, "name": MODEL}, "engine": {"kind": "mock", "mock": {"speedup": float("inf")}}}
    )
    scratch = Path(tempfile.gettempdir())
    context = EngineContext(worker=WorkerId("w"), role=Role.BOTH, host="127.0.0.1", moves_kv=False, scratch=scratch)
    engine, tokenizer = MockEngine(config, context), Tokenizer.load(config.model)
    await engine.start(lambda _: None)
    took = []
    for number in range(20):
        token_ids = await tokenizer.encode_text(f"{number} " + "sample " * (wrk_load.PROMPT_CHARS // 7))
        request = EngineRequest(
            request_id=RequestId(str(number)), token_ids=token_ids, sampling=Sampling(max_tokens=16, ignore_eos=True)
        )
        asked_at = time.perf_counter()
        async for _ in engine.generate(request):
            took.append(time.perf_counter() - asked_at)
            break
    await engine.stop()
    tokenizer.close()
    return sorted(took)[len(took) // 2]


def main() -> None:
    options = _options()
    if (problem := wrk_load.find_problem()) is not None:
        print(problem)
        return
    if not options.dynamo_python and not options.alone:
        print("skipped, no Dynamo: give --dynamo-python or set HPCSERVE_DYNAMO_PYTHON (dynamo_replay.py says how)")
        return
    from hpcserve.engine.tiny_model import make_tiny_model

    cells = [Cell(tokens, connections) for tokens in options.tokens for connections in options.connections]
    results: dict[str, dict[Cell, Cost]] = {}
    lines = []
    with tempfile.TemporaryDirectory(prefix="hs-") as name:
        directory = Path(name)
        model = directory / "model"
        make_tiny_model(model)
        own_s = asyncio.run(engine_ttft_s(model))
        lines.append(f"mock engine itself: time to first token {1e3 * own_s:.2f} ms")
        if not options.alone:
            with serving_systems.dynamo(directory, model, options.dynamo_python) as system:
                lines.append(ttft_line(system))
                results[system.name] = run(system, directory, cells, options.seconds)
        with serving_systems.hpcserve(directory, model, options.flag) as system:
            lines.append(ttft_line(system))
            results[system.name] = run(system, directory, cells, options.seconds)
            if options.vllm_router_python:
                with serving_systems.vllm_router(directory, options.vllm_router_python, system) as proxy:
                    results[proxy.name] = run(proxy, directory, cells, options.seconds)
    for cell in cells:
        show(cell, {name: found[cell] for name, found in results.items()}, list(results))
    print("", *lines, sep="\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    python = os.environ.get
    parser.add_argument("--dynamo-python", type=Path, default=python("HPCSERVE_DYNAMO_PYTHON") or None)
    parser.add_argument("--vllm-router-python", type=Path, default=python("HPCSERVE_VLLM_ROUTER_PYTHON") or None)
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 256, 1], help="of one reply")
    parser.add_argument("--connections", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--seconds", type=float, default=8, help="a load at least; longer where replies take longer")
    parser.add_argument("--alone", action="store_true", help="hpcserve only")
    parser.add_argument(
        "--flag", action="append", default=[], help="more for hpcserve up, such as --flag=--frontends=2"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
