"""For how long a stream stands still when its worker leaves: with its KV handed over, and with all computed again.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.moved_request [MODEL] [--engine mock|vllm]

Two engines on this machine: the mock in real time, and real vLLM with NIXL between them, one thread each. A stream of
so many tokens is moved from one to the other as the agents and the dispatcher do it; the pause is from the last delta
of the one to the first of the other. What a deployment adds is the way over the head: a few milliseconds. In turns,
with the KV and without; medians. Prints a table.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import statistics
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from hpcserve.config import Config
from hpcserve.engine.tiny_model import make_tiny_model
from hpcserve.types import EngineRequest, RequestId, Sampling
from tests.contract.engine_subjects import Subject, make_config, make_context, make_subject_engine, start_subject
from tests.contract.moving import Moved

LENGTHS = (1000, 2000, 4000, 8000)  # tokens when it is moved, prompt and generated
GENERATED = 40  # of these
REPEATS = 7
_ids = iter(range(1_000_000))


async def main(kind: str, model: Path | None) -> None:
    """Measure and print one engine's rows."""
    with tempfile.TemporaryDirectory() as scratch:
        async with _engines(kind, model, Path(scratch)) as (old, new):
            await _pause_ms(old, new, LENGTHS[0], with_kv=True)  # the first contact of two engines takes longer
            for length in LENGTHS:
                times: dict[bool, list[float]] = {True: [], False: []}
                for _ in range(REPEATS):
                    for with_kv, seen in times.items():
                        seen.append(await _pause_ms(old, new, length, with_kv=with_kv))
                pulled, computed = (statistics.median(times[with_kv]) for with_kv in (True, False))
                print(
                    f"| {kind} | {length:,} | {pulled:.0f} | {max(times[True]):.0f} | {computed:.0f} | "
                    f"{max(times[False]):.0f} | {pulled / computed:.2f} |",
                    flush=True,
                )


async def _pause_ms(old: Subject, new: Subject, length: int, *, with_kv: bool) -> float:
    number = next(_ids)
    request = EngineRequest(
        request_id=RequestId(f"r{number}"),
        token_ids=[300 + (number * 7919 + index * index) % 1700 for index in range(length - GENERATED)],
        sampling=Sampling(max_tokens=GENERATED * 2, temperature=0.0, ignore_eos=True),
    )
    sequence = Moved(request)
    await sequence.run_on(old, GENERATED, with_kv=with_kv)
    await sequence.run_on(new)
    assert sequence.counts.pauses.num("pulled" if with_kv else "recomputed") == 1, "it was moved in the other way"
    return sequence.counts.pauses.seconds * 1000


@asynccontextmanager
async def _engines(kind: str, model: Path | None, scratch: Path) -> Any:
    config = _in_real_time(make_config(kind, model))
    engines = [make_subject_engine(config, make_context(name, scratch)) for name in ("a-0-1", "b-0-1")]
    try:
        yield await asyncio.gather(*(start_subject(engine) for engine in engines))
    finally:
        await asyncio.gather(*(engine.stop() for engine in engines))


def _in_real_time(config: Config) -> Config:
    mock = config.engine.mock.model_copy(update={"speedup": 1.0})
    return config.model_copy(
        update={
            "engine": config.engine.model_copy(update={"mock": mock}),
            "model": config.model.model_copy(update={"max_model_len": 8192}),
        }
    )


def run(args: argparse.Namespace) -> None:
    """Measure both engines, or the one that is named; vLLM where it and NIXL are installed."""
    print("| engine | tokens | with KV: median, ms | max | computed again: median, ms | max | ratio |")
    print("|---|---|---|---|---|---|---|")
    if args.engine != "vllm":
        asyncio.run(main("mock", None))
    if args.engine == "mock":
        return
    missing = [name for name in ("vllm", "nixl") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"vllm: skipped, not installed: {', '.join(missing)}")
        return
    with tempfile.TemporaryDirectory() as directory:
        model = args.model or Path(directory) / "tiny"
        if args.model is None:
            make_tiny_model(model)
        asyncio.run(main("vllm", model))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="a model's directory; without one a tiny model is made")
    parser.add_argument("--engine", choices=("mock", "vllm"), help="only this one")
    return parser.parse_args()


if __name__ == "__main__":
    run(parse())
