"""How long pulling a warm prefix from another vLLM engine takes, against computing it; and what being able to costs.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.prefix_pull [MODEL] [--skip-cost]

Real vLLM engines on this machine's CPUs, one thread each, NIXL between them. A request of a prefix and 32 tokens more
is timed to its first token: with the prefix computed, and with the prefix warm on the other engine, its handle asked
for as the dispatcher does. In turns, so that a busy machine slows both; medians. Prints one JSON object a line.
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
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from hpcserve.engine.tiny_model import make_tiny_model
from hpcserve.types import EngineOutput, EngineRequest, RequestId, Sampling
from tests.contract.engine_subjects import make_config, make_context, make_subject_engine

LENGTHS = (500, 1000, 2000, 4000)
REPEATS = 12
TAIL = 32  # tokens of a request after the prefix
BLOCK = 32
_random = random.Random(3)
_ids = iter(range(1_000_000))


async def main(model: Path, *, with_cost: bool) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as scratch:
        async with _engines(model, Path(scratch), {"a": True, "b": True}) as (source, target):
            await _measure_pulls(source, target)
        if with_cost:
            async with _engines(model, Path(scratch), {"without": False, "with": True}) as (without, able):
                await _measure_cost(without, able)


async def _measure_pulls(source: Any, target: Any) -> None:
    first = await _pull(source, target, LENGTHS[0])
    print(json.dumps({"first_contact_ms": _ms(first["handle"] + first["pull"])}))
    for length in LENGTHS:
        num_tokens = length // BLOCK * BLOCK  # as the router gives them: whole blocks
        computed, pulled = [], []
        for _ in range(REPEATS):
            prompt = _prompt(num_tokens + TAIL)
            computed.append((await _timed(target, _request(prompt)))[0])
            pulled.append(await _pull(source, target, num_tokens))
        compute, handle, pull = (
            statistics.median(times)
            for times in (computed, [times["handle"] for times in pulled], [times["pull"] for times in pulled])
        )
        print(
            json.dumps(
                {
                    "prefix_tokens": num_tokens,
                    "compute_ms": _ms(compute),
                    "pull_ms": _ms(handle + pull),
                    "of_which_handle_ms": _ms(handle),
                    "ratio": round((handle + pull) / compute, 2),
                }
            )
        )
    report = await target.measure()
    print(
        json.dumps({"reported_latency_ms": report.pull_latency_ms, "reported_tokens_per_s": report.pull_tokens_per_s})
    )


async def _pull(source: Any, target: Any, num_tokens: int) -> dict[str, float]:
    """Warm a prefix on the source, and time what brings a request for it to its first token on the target."""
    prompt = _prompt(num_tokens + TAIL)
    await _timed(source, _request(prompt[:-1]))
    handle_s, last = await _timed(source, _request(prompt[: num_tokens + 1], prefill_only=True))
    pull_s, first = await _timed(target, _request(prompt, kv=last.kv))
    assert first.pulled_tokens > num_tokens, "the KV did not come over the wire"
    return {"handle": handle_s, "pull": pull_s}


async def _measure_cost(without: Any, able: Any) -> None:
    """Print the seconds that an engine takes which could pull but does not, and one which could not."""
    print(json.dumps({"ready_s": [round(engine.ready_s, 1) for engine in (without, able)]}))
    for name, measure, repeats in (
        ("ttft_of_1000_ms", _ttft, 20),
        ("stream_of_400_ms", _stream, 6),
        ("batch_of_64_ms", _batch, 6),
    ):
        pairs = [(await measure(without), await measure(able)) for _ in range(repeats)]
        middle = [statistics.median(times) for times in zip(*pairs, strict=True)]
        print(json.dumps({name: [_ms(seconds) for seconds in middle], "ratio": round(middle[1] / middle[0], 2)}))


async def _ttft(engine: Any) -> float:
    return (await _timed(engine, _request(_prompt(1000))))[0]


async def _stream(engine: Any) -> float:
    return (await _timed(engine, _request(_prompt(100), max_tokens=400)))[0]


async def _batch(engine: Any) -> float:
    began = time.perf_counter()
    await asyncio.gather(*(_timed(engine, _request(_prompt(128), max_tokens=64)) for _ in range(64)))
    return time.perf_counter() - began


@asynccontextmanager
async def _engines(model: Path, scratch: Path, moves_kv: dict[str, bool]) -> Any:
    """Engines that start together, by name; each keeps the seconds from its process's start to its first token."""
    config = make_config("vllm", model)
    engines = [
        make_subject_engine(config, make_context(name, scratch, moves_kv=moves)) for name, moves in moves_kv.items()
    ]
    try:
        await asyncio.gather(*(_start(engine) for engine in engines))
        yield engines
    finally:
        await asyncio.gather(*(engine.stop() for engine in engines))


async def _start(engine: Any) -> None:
    began = time.perf_counter()
    await engine.start(lambda events: None)
    await _timed(engine, _request(_prompt(3)))
    engine.ready_s = time.perf_counter() - began


async def _timed(engine: Any, request: EngineRequest) -> tuple[float, EngineOutput]:
    """Return the seconds to the end of a request and its last output, or of one token the only one."""
    began = time.perf_counter()
    outputs = [output async for output in engine.generate(request)]
    return time.perf_counter() - began, outputs[-1]


def _prompt(num_tokens: int) -> list[int]:
    return [_random.randrange(300, 2000) for _ in range(num_tokens)]


def _request(prompt: list[int], *, max_tokens: int = 1, **extra: Any) -> EngineRequest:
    sampling = Sampling(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    return EngineRequest(request_id=RequestId(f"r{next(_ids)}"), token_ids=prompt, sampling=sampling, **extra)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="a model's directory; without one a tiny model is made")
    parser.add_argument("--skip-cost", action="store_true", help="only the pulls")
    return parser.parse_args()


def run(args: argparse.Namespace) -> None:
    """Measure where vLLM and NIXL are installed."""
    missing = [name for name in ("vllm", "nixl") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"skipped, not installed: {', '.join(missing)}")
        return
    with tempfile.TemporaryDirectory() as directory:
        model = args.model or Path(directory) / "tiny"
        if args.model is None:
            make_tiny_model(model)
        asyncio.run(main(model, with_cost=not args.skip_cost))


if __name__ == "__main__":
    run(parse())
