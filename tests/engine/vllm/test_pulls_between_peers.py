"""Aggregated vLLM engines pull warm prefixes from one another over NIXL: at once, under load, and when one dies."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path

import pytest
import pytest_asyncio

from hpcserve.errors import EngineError
from hpcserve.kv.hashing import hash_blocks
from hpcserve.types import EngineOutput, EngineRequest, KvHandle, RequestId, Sampling
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

GREEDY = Sampling(max_tokens=16, temperature=0.0, ignore_eos=True)
SHARED = 1024  # tokens of a warm prefix
SMALL_CACHE = {"args": {"kv_cache_memory_bytes": 128 << 20}}
_random = random.Random(19)
_numbers = count()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def peers(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[list[Subject]]:
    """Two engines of role both, with caches that a few prompts fill."""
    scratch = tmp_path_factory.mktemp("scratch")
    config = make_config("vllm", tiny_model, vllm=SMALL_CACHE)
    made = [make_subject_engine(config, make_context(name, scratch)) for name in ("both-0-1", "both-1-1")]
    try:
        yield await asyncio.gather(*(start_subject(engine) for engine in made))
    finally:
        await asyncio.gather(*(engine.stop() for engine in made))


async def test_peers_are_source_and_receiver_at_once_while_they_decode(peers: list[Subject]) -> None:
    one, two = peers
    ours, theirs = [[make_prompt(SHARED + 90) for _ in range(3)] for _ in range(2)]
    expected = [await warm(one, prompt) for prompt in ours] + [await warm(two, prompt) for prompt in theirs]
    before = [await peer.load() for peer in peers]
    async with AsyncExitStack() as stack:
        for peer in peers:
            await keep_decoding(peer, stack)
        outputs = await asyncio.gather(
            *(pull_and_run(one, two, prompt) for prompt in ours), *(pull_and_run(two, one, prompt) for prompt in theirs)
        )
    assert [tokens(output) for output in outputs] == expected
    assert all(output[0].pulled_tokens == SHARED + 1 for output in outputs)
    after = [await peer.load() for peer in peers]
    assert [now.pulled_tokens_total - then.pulled_tokens_total for now, then in zip(after, before, strict=True)] == [
        3 * (SHARED + 1)
    ] * 2
    assert [load.pull_failures_total for load in after] == [load.pull_failures_total for load in before]


async def test_only_the_part_of_a_prefix_that_is_missing_is_pulled(peers: list[Subject]) -> None:
    one, two = peers
    prompt = make_prompt(SHARED + 90)
    expected = await warm(one, prompt)
    await two.run(make_request(prompt[:320]))
    outputs = await pull_and_run(one, two, prompt)
    assert (outputs[0].cached_tokens, outputs[0].pulled_tokens) == (320, SHARED + 1 - 320)
    assert tokens(outputs) == expected


async def test_a_handle_to_what_is_cached_already_is_no_failure(peers: list[Subject]) -> None:
    one, two = peers
    prompt = make_prompt(SHARED + 90)
    expected = await warm(one, prompt)
    await warm(two, prompt)
    before = await two.load()
    outputs = await pull_and_run(one, two, prompt, covered=512)
    assert (outputs[0].cached_tokens, outputs[0].pulled_tokens) == (1088, 0)
    assert tokens(outputs) == expected
    assert (await two.load()).pull_failures_total == before.pull_failures_total


async def test_a_source_that_has_evicted_the_prefix_computes_it(peers: list[Subject]) -> None:
    one, two = peers
    prompt = make_prompt(SHARED + 90)
    expected = await warm(one, prompt)
    held = set(hash_blocks(prompt, 32))
    await one.cache.wait_for(list(held))
    for _ in range(one.info.num_kv_blocks * 32 // 4000 + 2):
        await one.run(make_request(make_prompt(4000), max_tokens=1))
    assert not one.cache.hashes & held, "the prefix is still there"
    outputs = await pull_and_run(one, two, prompt)
    assert tokens(outputs) == expected
    assert outputs[0].pulled_tokens == SHARED + 1


async def test_the_load_tells_how_long_pulls_take(peers: list[Subject]) -> None:
    one, two = peers
    for length in (256, 1024, 3072):
        prompt = make_prompt(length + 40)
        await warm(one, prompt)
        await pull_and_run(one, two, prompt, covered=length + 1)
    load = await two.load()
    assert load.pull_latency_ms is not None
    assert 0.5 < load.pull_latency_ms < 5000
    assert load.pull_tokens_per_s is None or load.pull_tokens_per_s > 1000


async def test_a_source_killed_while_it_is_pulled_from_costs_a_recompute(peers: list[Subject]) -> None:
    one, two = peers
    prompts = [make_prompt(SHARED + 90) for _ in range(4)]
    expected = [await warm(one, prompt) for prompt in prompts]
    handles = [await handle_of(one, prompt, SHARED + 1) for prompt in prompts]
    before = await two.load()
    pulling = [
        asyncio.create_task(two.run(make_request(prompt, kv=handle)))
        for prompt, handle in zip(prompts[:3], handles, strict=False)
    ]
    await asyncio.sleep(0)  # the requests are on their way
    await one.engine.kill()
    outputs = await asyncio.gather(*pulling)
    outputs.append(await two.run(make_request(prompts[3], kv=handles[3])))  # nobody is there any more
    assert [tokens(output) for output in outputs] == expected
    after = await two.load()
    num_failed = after.pull_failures_total - before.pull_failures_total
    assert num_failed == sum(output[0].pulled_tokens == 0 for output in outputs)
    assert num_failed >= 1


def make_prompt(num_tokens: int) -> list[int]:
    return [_random.randrange(300, 2000) for _ in range(num_tokens)]


def make_request(prompt: list[int], *, max_tokens: int = 16, **extra: object) -> EngineRequest:
    sampling = Sampling(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    return EngineRequest(request_id=RequestId(f"r{next(_numbers)}"), token_ids=prompt, sampling=sampling, **extra)


async def warm(peer: Subject, prompt: list[int]) -> list[int]:
    """Have a prompt computed, and return what follows it."""
    return tokens(await peer.run(make_request(prompt)))


async def handle_of(source: Subject, prompt: list[int], num_tokens: int) -> KvHandle:
    handle = (await source.run(make_request(prompt[:num_tokens], prefill_only=True)))[-1].kv
    assert handle is not None
    return handle


async def pull_and_run(
    source: Subject, target: Subject, prompt: list[int], *, covered: int = SHARED + 1
) -> list[EngineOutput]:
    return await target.run(make_request(prompt, kv=await handle_of(source, prompt, covered)))


async def keep_decoding(peer: Subject, stack: AsyncExitStack) -> None:
    """Keep an engine busy until the stack is left; return when it is."""
    endless = make_request(make_prompt(40), max_tokens=4000)
    began = asyncio.Event()

    async def read() -> None:
        async for _ in peer.engine.generate(endless):
            began.set()

    reading = asyncio.create_task(read())
    await began.wait()

    async def end() -> None:
        assert not reading.done(), "it ended before the others did"
        await peer.engine.abort(endless.request_id)
        await reading

    stack.push_async_callback(end)


async def test_without_nixl_an_aggregated_engine_warns_and_computes(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "path" / "nixl"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('broken on purpose')")
    monkeypatch.setenv("PYTHONPATH", str(broken.parent))
    config = make_config("vllm", tiny_model)
    for refused in (config.model_copy(update={"strict": True}), disaggregated(config)):
        engine = make_subject_engine(refused, make_context("both-0-1", tmp_path))
        with pytest.raises(EngineError, match="NIXL is not installed, or does not load"):
            await start_subject(engine)
        await engine.stop()
    subject = await start_subject(make_subject_engine(config, make_context("both-0-1", tmp_path)))
    try:
        assert subject.info.kv_transport is None
        assert [warning for warning in subject.info.warnings if "computed again instead of pulled" in warning]
        handle = KvHandle(transport="nixl", source="both-1-1", num_tokens=64, params={})
        outputs = await subject.run(make_request(make_prompt(90), kv=handle))
        assert len(tokens(outputs)) == 16
        assert (await subject.load()).pull_failures_total == 1
        assert (await subject.run(make_request(make_prompt(90), prefill_only=True)))[-1].error
    finally:
        await subject.engine.stop()


def disaggregated(config):  # type: ignore[no-untyped-def]
    return config.model_copy(update={"pools": config.pools.model_copy(update={"mode": "disaggregated"})})
