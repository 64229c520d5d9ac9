"""Time to the first token of a 1,000-token prompt, disaggregated against aggregated, and seconds to start an engine.

    python -m tests.benchmarks.disaggregated_ttft [MODEL] [--transport nixl|mpi]

Real vLLM engines on this machine's CPUs, one thread each, NIXL between them, or MPI (`mpirun -n 3`). Prints one JSON
object.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from hpcserve.engine.tiny_model import make_tiny_model
from hpcserve.types import EngineOutput, EngineRequest, KvHandle, RequestId, Sampling
from tests.contract.engine_subjects import make_config, make_context, make_subject_engine, over_mpi
from tests.contract.rank_engines import started

PROMPT_TOKENS = 1000
NUM_PROMPTS = 12
_random = random.Random(3)


async def main(model: Path, transport: str) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as scratch:
        async with _engines(transport, model, Path(scratch)) as (prefill, decode):
            alone_s = await _start(prefill)
            second_s = await _start(decode)
            aggregated, disaggregated = [], []
            for number in range(NUM_PROMPTS):  # in turns, so that a busy machine slows both
                aggregated.append(await _measure_aggregated(decode, f"a{number}"))
                disaggregated.append(await _measure_disaggregated(prefill, decode, f"d{number}"))
    middle = [statistics.median(times[2:]) for times in (aggregated, disaggregated)]  # the first two shake hands
    print(
        json.dumps(
            {
                "transport": transport,
                "prompt_tokens": PROMPT_TOKENS,
                "ready_s": [round(alone_s, 1), round(second_s, 1)],
                "ttft_aggregated_s": round(middle[0], 4),
                "ttft_disaggregated_s": round(middle[1], 4),
                "ratio": round(middle[1] / middle[0], 2),
            }
        )
    )


@asynccontextmanager
async def _engines(transport: str, model: Path, scratch: Path) -> AsyncIterator[list[Any]]:
    config = make_config("vllm", model)
    contexts = [make_context(name, scratch) for name in ("a", "b")]
    if transport == "mpi":
        async with started(scratch, [(over_mpi(config), context) for context in contexts]) as made:
            try:
                yield list(made)
            finally:
                await asyncio.gather(*(engine.stop() for engine in made))
        return
    engines = [make_subject_engine(config, context) for context in contexts]
    try:
        yield engines
    finally:
        await asyncio.gather(*(engine.stop() for engine in engines))


async def _start(engine: object) -> float:
    """Return seconds from the process's start to READY: a real one-token generation."""
    began = time.perf_counter()
    await engine.start(lambda events: None)
    await _first(engine, _request("ready", [300, 301, 302]))
    return time.perf_counter() - began


async def _measure_aggregated(engine: object, name: str) -> float:
    began = time.perf_counter()
    await _first(engine, _request(name, _prompt()))
    return time.perf_counter() - began


async def _measure_disaggregated(prefill: object, decode: object, name: str) -> float:
    prompt = _prompt()
    began = time.perf_counter()
    handle = (await _first(prefill, _request(name, prompt, prefill_only=True))).kv
    first = await _first(decode, _request(name, prompt, kv=handle))
    elapsed_s = time.perf_counter() - began
    assert first.pulled_tokens >= PROMPT_TOKENS - 1, "the KV did not come over the wire"
    return elapsed_s


async def _first(engine: object, request: EngineRequest) -> EngineOutput:
    """Return the first output; the request has one token, so it is the last one too."""
    outputs = [output async for output in engine.generate(request)]
    return outputs[0]


def _prompt() -> list[int]:
    return [_random.randrange(300, 2000) for _ in range(PROMPT_TOKENS)]


def _request(name: str, prompt: list[int], *, prefill_only: bool = False, kv: KvHandle | None = None) -> EngineRequest:
    sampling = Sampling(max_tokens=1, temperature=0.0, ignore_eos=True)
    return EngineRequest(
        request_id=RequestId(name), token_ids=prompt, sampling=sampling, prefill_only=prefill_only, kv=kv
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="a model's directory; without one a tiny model is made")
    parser.add_argument("--transport", choices=("nixl", "mpi"), default="nixl", help="what the KV goes by")
    return parser.parse_args()


def run(args: argparse.Namespace) -> None:
    """Measure where vLLM and NIXL are installed."""
    missing = [
        name
        for name in ("vllm", "nixl" if args.transport == "nixl" else "mpi4py")
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        print(f"skipped, not installed: {', '.join(missing)}")
        return
    with tempfile.TemporaryDirectory() as directory:
        model = args.model or Path(directory) / "tiny"
        if args.model is None:
            make_tiny_model(model)
        asyncio.run(main(model, args.transport))


if __name__ == "__main__":
    run(parse())
