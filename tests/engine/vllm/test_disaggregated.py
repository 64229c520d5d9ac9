"""Prefill on one vLLM engine, decode on another, with NIXL in between: the same tokens as on one engine alone."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from hpcserve.types import EngineOutput, EngineRequest, RequestId, Sampling
from tests.contract.engine_subjects import (
    Subject,
    make_config,
    make_context,
    make_subject_engine,
    start_subject,
    tokens,
)

pytestmark = [
    pytest.mark.real,
    pytest.mark.vllm,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(180),
]

GREEDY = Sampling(max_tokens=24, temperature=0.0, ignore_eos=True)
_random = random.Random(11)
LENGTHS = sorted([50, 3000] + [_random.randrange(50, 3000) for _ in range(18)])
PROMPTS = [[_random.randrange(300, 2000) for _ in range(length)] for length in LENGTHS]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engines(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[list[Subject]]:
    """A prefill engine, a decode engine, and after both the aggregated one; never three at once."""
    scratch = tmp_path_factory.mktemp("scratch")
    config = make_config("vllm", tiny_model)
    made = [make_subject_engine(config, make_context(name, scratch)) for name in ("prefill-0-1", "decode-0-1")]
    try:
        yield await asyncio.gather(*(start_subject(engine) for engine in made))
    finally:
        await asyncio.gather(*(engine.stop() for engine in made))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def aggregated(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[list[int]]:
    """What an engine that was not started for disaggregated serving says to each prompt."""
    context = make_context("both-0-1", tmp_path_factory.mktemp("scratch"), moves_kv=False)
    subject = await start_subject(make_subject_engine(make_config("vllm", tiny_model), context))
    try:
        return [tokens(await subject.run(_request(f"alone-{index}", prompt))) for index, prompt in enumerate(PROMPTS)]
    finally:
        await subject.engine.stop()


async def test_outputs_equal_the_aggregated_engines_one_by_one(
    aggregated: list[list[int]], engines: list[Subject]
) -> None:
    prefill, decode = engines
    for index, prompt in enumerate(PROMPTS):
        outputs = await _serve(prefill, decode, f"one-{index}", prompt, salt="one")
        assert tokens(outputs) == aggregated[index], f"prompt {index} of {len(prompt)} tokens"
        assert outputs[0].pulled_tokens >= len(prompt) - 1
        assert outputs[0].cached_tokens == 0
    load = await decode.load()
    assert load.pulled_tokens_total >= sum(LENGTHS) - len(LENGTHS)
    assert load.prompt_tokens_total == sum(LENGTHS)
    assert load.pull_failures_total == 0


async def test_outputs_equal_the_aggregated_engines_all_at_once(
    aggregated: list[list[int]], engines: list[Subject]
) -> None:
    prefill, decode = engines
    before = await decode.load()
    served = await asyncio.gather(
        *(_serve(prefill, decode, f"all-{index}", prompt, salt="all") for index, prompt in enumerate(PROMPTS))
    )
    assert [tokens(outputs) for outputs in served] == aggregated
    after = await decode.load()
    assert after.pulled_tokens_total - before.pulled_tokens_total >= sum(LENGTHS) - len(LENGTHS)
    assert after.pull_failures_total == 0


async def test_an_engine_that_was_killed_costs_a_recompute(aggregated: list[list[int]], engines: list[Subject]) -> None:
    prefill, decode = engines
    handle = (await prefill.run(_request("orphan", PROMPTS[10], prefill_only=True, cache_salt="killed")))[-1].kv
    await prefill.engine.kill()
    outputs = await decode.run(_request("orphan", PROMPTS[10], kv=handle, cache_salt="killed"))
    assert tokens(outputs) == aggregated[10]
    assert (await decode.load()).pull_failures_total == 1


async def _serve(prefill: Subject, decode: Subject, name: str, prompt: list[int], *, salt: str) -> list[EngineOutput]:
    handle = (await prefill.run(_request(name, prompt, prefill_only=True, cache_salt=salt)))[-1].kv
    assert handle is not None
    return await decode.run(_request(name, prompt, kv=handle, cache_salt=salt))


def _request(name: str, prompt: list[int], **extra: object) -> EngineRequest:
    return EngineRequest(request_id=RequestId(name), token_ids=prompt, sampling=GREEDY, **extra)
