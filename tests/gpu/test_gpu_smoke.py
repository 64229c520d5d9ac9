"""A first look at a machine with a GPU: vLLM's CUDA build, NIXL with GPU buffers, disaggregated equal to aggregated.

    pytest tests/gpu -s                                       # the small model
    HPCSERVE_GPU_MODEL=/path/to/model pytest tests/gpu -s     # a real one

Both engines share one GPU, so the times say that it works, not how fast it can be.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from hpcserve.config import Config
from hpcserve.types import EngineOutput, EngineRequest, RequestId, Sampling
from tests.contract.engine_subjects import Subject, make_context, make_subject_engine, start_subject, tokens

pytestmark = [pytest.mark.gpu, pytest.mark.real, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]

GREEDY = Sampling(max_tokens=32, temperature=0.0, ignore_eos=True, logprobs=2)
NEAR_TIE = 0.05  # nats between the two likeliest tokens; half precision may order them either way
PREFILL_TOKENS = 1000
_random = random.Random(5)
PROMPTS = [[_random.randrange(300, 2000) for _ in range(length)] for length in (50, 200, 500, 1000, 1000, 1000, 3000)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engines(gpu: None, request: pytest.FixtureRequest, tmp_path_factory: Any) -> AsyncIterator[list[Subject]]:
    """A prefill and a decode engine on one GPU; each can also serve alone."""
    model = Path(os.environ.get("HPCSERVE_GPU_MODEL") or request.getfixturevalue("tiny_model"))
    config = Config.model_validate(
        {
            "model": {"path": model, "max_model_len": 4096, "dtype": "float16", "tensor_parallel": 1},
            "engine": {"block_size": 32, "vllm": {"args": {"gpu_memory_utilization": 0.35}}},
        }
    )
    scratch = tmp_path_factory.mktemp("scratch")
    made = [make_subject_engine(config, make_context(name, scratch)) for name in ("prefill-0-1", "decode-0-1")]
    started = []
    try:
        for engine in made:  # one after the other: each measures the memory that is free
            began = time.perf_counter()
            started.append(await start_subject(engine))
            print(f"\n{started[-1].info.num_kv_blocks} KV blocks after {time.perf_counter() - began:.1f} s", end="")
        yield started
    finally:
        await asyncio.gather(*(engine.stop() for engine in made))


async def test_disaggregated_outputs_equal_the_aggregated_ones(engines: list[Subject]) -> None:
    prefill, decode = engines
    num_equal = 0
    for index, prompt in enumerate(PROMPTS):
        pulled, _ = await _serve_disaggregated(prefill, decode, f"d{index}", prompt)
        alone, _ = await _timed(prefill, _request(f"a{index}", prompt, salt="alone"))
        assert pulled[0].pulled_tokens >= len(prompt) - 1
        num_equal += _equal_but_for_ties(pulled, alone)
    print(f"\n{num_equal} of {len(PROMPTS)} outputs equal token for token, the others up to a near tie")
    assert num_equal > len(PROMPTS) // 2
    load = await decode.load()
    assert load.pulled_tokens_total >= sum(map(len, PROMPTS)) - len(PROMPTS)
    assert load.pull_failures_total == 0


async def test_the_first_token_is_not_much_later_disaggregated(engines: list[Subject]) -> None:
    prefill, decode = engines
    times: dict[str, list[float]] = {"aggregated": [], "disaggregated": []}
    for number in range(8):
        prompt = [_random.randrange(300, 2000) for _ in range(PREFILL_TOKENS)]
        times["disaggregated"].append((await _serve_disaggregated(prefill, decode, f"td{number}", prompt))[1])
        times["aggregated"].append((await _timed(decode, _request(f"ta{number}", prompt, salt="alone")))[1])
    middle = {name: statistics.median(values[2:]) for name, values in times.items()}
    print(f"\nTTFT of {PREFILL_TOKENS} tokens: " + ", ".join(f"{name} {s * 1e3:.1f} ms" for name, s in middle.items()))
    assert middle["disaggregated"] < 1.5 * middle["aggregated"] + 0.05  # small models: the hand-over dominates


async def test_many_requests_at_once_are_all_served(engines: list[Subject]) -> None:
    _, decode = engines
    prompts = [[_random.randrange(300, 2000) for _ in range(128)] for _ in range(64)]
    began = time.perf_counter()
    served = await asyncio.gather(*(decode.run(_request(f"m{i}", prompt)) for i, prompt in enumerate(prompts)))
    elapsed_s = time.perf_counter() - began
    num_tokens = sum(len(tokens(outputs)) for outputs in served)
    print(f"\n{num_tokens / elapsed_s:.0f} output tokens/s with {len(prompts)} requests of 128+{GREEDY.max_tokens}")
    assert num_tokens == len(prompts) * GREEDY.max_tokens


def _equal_but_for_ties(left: list[EngineOutput], right: list[EngineOutput]) -> bool:
    """Return whether the tokens are equal; fail where they part at a token that was no near tie."""
    for position, (one, other) in enumerate(zip(tokens(left), tokens(right), strict=True)):
        if one != other:
            entries = [entry for output in right for entry in output.logprobs]
            likeliest, second = entries[position].top[:2]
            assert likeliest[2] - second[2] < NEAR_TIE, f"token {position} differs and was no tie"
            return False
    return True


async def _serve_disaggregated(
    prefill: Subject, decode: Subject, name: str, prompt: list[int]
) -> tuple[list[EngineOutput], float]:
    began = time.perf_counter()
    handle = (await prefill.run(_request(name, prompt, prefill_only=True)))[-1].kv
    assert handle is not None
    prefill_s = time.perf_counter() - began
    outputs, first_s = await _timed(decode, _request(name, prompt, kv=handle))
    return outputs, prefill_s + first_s


async def _timed(subject: Subject, request: EngineRequest) -> tuple[list[EngineOutput], float]:
    """Return the outputs, and the seconds to the first."""
    began, first_s, outputs = time.perf_counter(), 0.0, []
    async for output in subject.engine.generate(request):
        first_s = first_s or time.perf_counter() - began
        outputs.append(output)
    return outputs, first_s


def _request(name: str, prompt: list[int], *, salt: str | None = None, **extra: Any) -> EngineRequest:
    return EngineRequest(request_id=RequestId(name), token_ids=prompt, sampling=GREEDY, cache_salt=salt, **extra)
