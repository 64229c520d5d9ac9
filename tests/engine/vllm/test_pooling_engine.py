"""A vLLM that pools: it embeds prompts, says that it can do nothing else, and is warmed up so."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path

import pytest
import pytest_asyncio

from hpcserve.kv.hashing import hash_blocks
from hpcserve.types import EngineRequest, RequestId, Sampling
from tests.contract.engine_subjects import Subject, make_config, make_context, make_subject_engine, start_subject

pytestmark = [
    pytest.mark.real,
    pytest.mark.vllm,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(120),
]

_numbers = count()
WIDTH = 256  # of the tiny model


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pooling(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Subject]:
    """Started as one of several workers would be: asked to move KV, which an engine like this has no use for."""
    config = make_config("vllm", tiny_model, vllm={"args": {"runner": "pooling"}})
    engine = make_subject_engine(config, make_context("both-0-1", tmp_path_factory.mktemp("scratch")))
    try:
        yield await start_subject(engine)
    finally:
        await engine.stop()


def make_request(prompt: list[int], **extra: object) -> EngineRequest:
    fields = {"embeds": True, **extra}
    return EngineRequest(
        request_id=RequestId(f"e{next(_numbers)}"), token_ids=prompt, sampling=Sampling(max_tokens=1), **fields
    )


async def embed(subject: Subject, prompt: list[int], **extra: object) -> tuple[float, ...]:
    (output,) = await subject.run(make_request(prompt, **extra))
    assert output.finish_reason == "stop", output.error
    assert output.embedding is not None
    return struct.unpack(f"<{WIDTH}f", output.embedding)


async def test_it_says_that_it_embeds_and_no_more(pooling: Subject) -> None:
    assert pooling.info.can == ("embed",)
    assert pooling.info.kv_transport is None


async def test_an_embedding_has_length_one_and_is_the_prompts_own(pooling: Subject) -> None:
    first, again, other = [await embed(pooling, [*range(400, 450), last]) for last in (7, 7, 8)]
    assert sum(value * value for value in first) == pytest.approx(1.0, abs=1e-5)
    assert first == pytest.approx(again, abs=1e-5)
    assert first != pytest.approx(other, abs=1e-3)


async def test_many_at_once_are_what_they_are_alone(pooling: Subject) -> None:
    prompts = [list(range(500, 520 + 30 * i)) for i in range(8)]
    together = await asyncio.gather(*(embed(pooling, prompt) for prompt in prompts))
    for prompt, vector in zip(prompts, together, strict=True):
        assert vector == pytest.approx(await embed(pooling, prompt, cache_salt="alone"), abs=1e-4)


async def test_prompts_are_counted_and_repeated_ones_found_in_the_cache(pooling: Subject) -> None:
    prompt = list(range(900, 1000))
    before = await pooling.load()
    cached = [(await pooling.run(make_request(prompt)))[0].cached_tokens for _ in range(2)]
    after = await pooling.load()
    assert after.prompt_tokens_total - before.prompt_tokens_total == 200
    assert after.num_running == after.num_waiting == 0
    assert cached == [0, 96]
    assert pooling.info.has_kv_events
    await pooling.cache.wait_for(hash_blocks(prompt, 32))


async def test_generating_is_refused(pooling: Subject) -> None:
    outputs = await pooling.run(make_request([1, 2, 3], embeds=False))
    assert [output.finish_reason for output in outputs] == ["error"]
    assert "cannot generate" in (outputs[0].error or "")


async def test_a_prompt_may_fill_the_context_and_no_more(pooling: Subject) -> None:
    limit = pooling.info.max_model_len
    assert len(await embed(pooling, [i % 1500 + 300 for i in range(limit)])) == WIDTH
    (refused,) = await pooling.run(make_request([5] * (limit + 1)))
    assert refused.finish_reason == "error"
    assert str(limit) in (refused.error or "")


async def test_aborting_ends_the_request(pooling: Subject) -> None:
    requests = [make_request([i % 1500 + 300 + n for i in range(4000)]) for n in range(6)]
    running = [asyncio.create_task(pooling.run(request)) for request in requests]
    while (await pooling.load()).num_waiting + (await pooling.load()).num_running == 0:
        await asyncio.sleep(0)
    await pooling.engine.abort(requests[-1].request_id)
    outputs = await asyncio.gather(*running)
    assert outputs[-1][-1].finish_reason == "abort"
    assert outputs[-1][-1].embedding is None
    assert [output[-1].finish_reason for output in outputs[:-1]] == ["stop"] * 5
