"""Prints how many tokens a second the mock engine delivers without simulated delay, on one core.

Run: python tests/benchmarks/mock_engine.py [--running N] [--tokens N]
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

import uvloop

from hpcserve.config.models import Config, EngineConfig, MockConfig
from hpcserve.engine.mock.core import MockCore
from hpcserve.engine.mock.engine import MockEngine
from hpcserve.engine.mock.scheduler import Limits
from hpcserve.engine.mock.timing import TimingModel
from hpcserve.engine.mock.tokens import load_table
from hpcserve.engine.protocol import EngineContext
from hpcserve.types import EngineRequest, RequestId, Role, Sampling, WorkerId

PROMPT_TOKENS = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--running", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=1000)
    args = parser.parse_args()
    run_core(args.running, args.tokens)
    uvloop.run(run_engine(args.running, args.tokens))


def requests(count: int, max_tokens: int) -> list[EngineRequest]:
    return [
        EngineRequest(
            request_id=RequestId(f"r{i}"),
            token_ids=[i] * PROMPT_TOKENS,
            sampling=Sampling(max_tokens=max_tokens),
        )
        for i in range(count)
    ]


def run_core(count: int, max_tokens: int) -> None:
    """Time the core alone, as a simulator would step it."""
    limits = Limits(num_blocks=16384, block_size=32, max_num_seqs=count, max_batched_tokens=8192)
    core = MockCore(limits, TimingModel(), load_table(None), 131072)
    for request in requests(count, max_tokens):
        core.add(request)
    start, now, tokens = time.perf_counter(), 0.0, 0
    while core.wakes_at(now) is not None:
        step = core.step(now)
        now += step.duration_s
        tokens += len(step.outputs)
    report("core", tokens, time.perf_counter() - start)


async def run_engine(count: int, max_tokens: int) -> None:
    """Time the engine with one task a request."""
    mock = MockConfig(speedup=float("inf"), max_num_seqs=count)
    config = Config(engine=EngineConfig(kind="mock", mock=mock))
    with tempfile.TemporaryDirectory() as scratch:
        context = EngineContext(
            worker=WorkerId("w"), role=Role.BOTH, host="127.0.0.1", moves_kv=False, scratch=Path(scratch)
        )
        engine = MockEngine(config, context)
        await engine.start(lambda events: None)
        start = time.perf_counter()
        counts = await asyncio.gather(*(consume(engine, request) for request in requests(count, max_tokens)))
        report("engine", sum(counts), time.perf_counter() - start)
        await engine.stop()


async def consume(engine: MockEngine, request: EngineRequest) -> int:
    return sum([len(output.token_ids) async for output in engine.generate(request)])


def report(what: str, tokens: int, seconds: float) -> None:
    print(f"{what:8} {tokens:8,} tokens in {seconds:6.2f} s: {tokens / seconds:10,.0f} tokens/s")


if __name__ == "__main__":
    main()
