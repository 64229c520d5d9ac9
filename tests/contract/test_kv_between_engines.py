"""Prefill on one vLLM engine, decode on another, over each KV transport: the same tokens as on one engine alone.

Over MPI the engines are in ranks 1 and 2 of `mpirun -n 3`, and rank 0 is where a head would be. The test asks.
"""

from __future__ import annotations

import asyncio
import importlib.util
import random
import shutil
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from hpcserve.types import EngineOutput, EngineRequest, KvHandle, RequestId, Sampling
from tests.contract.engine_subjects import (
    Subject,
    make_config,
    make_context,
    make_subject_engine,
    over_mpi,
    start_subject,
    tokens,
)
from tests.contract.rank_engines import started

pytestmark = [
    pytest.mark.real,
    pytest.mark.vllm,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),
]

GREEDY = Sampling(max_tokens=24, temperature=0.0, ignore_eos=True)
SILENCE_S = 4.0
CACHE_BYTES = 128 << 20  # a dozen long prompts
NAMES = ("prefill-0-1", "decode-0-1")
_random = random.Random(11)
_numbers = count()
LENGTHS = sorted([50, 3000] + [_random.randrange(50, 3000) for _ in range(18)])
PROMPTS = [[_random.randrange(300, 2000) for _ in range(length)] for length in LENGTHS]


@pytest.fixture(scope="module", params=["nixl", "mpi"])
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "nixl" and importlib.util.find_spec("nixl") is None:
        pytest.skip("no NIXL")
    if request.param == "mpi" and (shutil.which("mpirun") is None or importlib.util.find_spec("mpi4py") is None):
        pytest.skip("no MPI")
    return str(request.param)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def aggregated(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[list[int]]:
    """What an engine that was not started for disaggregated serving says to each prompt."""
    context = make_context("both-0-1", tmp_path_factory.mktemp("scratch"), moves_kv=False)
    subject = await start_subject(make_subject_engine(make_config("vllm", tiny_model), context))
    try:
        return [tokens(await subject.run(_request(prompt))) for prompt in PROMPTS]
    finally:
        await subject.engine.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engines(
    kind: str, aggregated: list[list[int]], tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[list[Subject]]:
    """A prefill engine and a decode engine; never three at once."""
    scratch = tmp_path_factory.mktemp("scratch")
    async with running(kind, tiny_model, scratch) as subjects:
        yield subjects


@asynccontextmanager
async def running(kind: str, model: Path, scratch: Path, *, in_process: bool = True) -> AsyncIterator[list[Subject]]:
    vllm = {"args": {"kv_cache_memory_bytes": CACHE_BYTES}, "in_process": in_process}
    config = make_config("vllm", model, vllm=vllm)
    contexts = [make_context(name, scratch) for name in NAMES]
    if kind == "nixl":
        made = [make_subject_engine(config, context) for context in contexts]
        try:
            yield await asyncio.gather(*(start_subject(engine) for engine in made))
        finally:
            await asyncio.gather(*(engine.stop() for engine in made))
        return
    config = over_mpi(config, timeout_s=SILENCE_S)
    async with started(scratch, [(config, context) for context in contexts]) as ranks:
        try:
            yield await asyncio.gather(*(start_subject(engine) for engine in ranks))
        finally:
            await asyncio.gather(*(engine.stop() for engine in ranks))


async def test_engines_say_what_their_kv_goes_by(kind: str, engines: list[Subject]) -> None:
    assert [each.info.kv_transport for each in engines] == [kind] * 2


async def test_outputs_equal_the_aggregated_engines_one_by_one(
    aggregated: list[list[int]], engines: list[Subject]
) -> None:
    prefill, decode = engines
    before = await decode.load()
    for index, prompt in enumerate(PROMPTS):
        outputs = await _serve(prefill, decode, prompt, salt="one")
        assert tokens(outputs) == aggregated[index], f"prompt {index} of {len(prompt)} tokens"
        assert outputs[0].pulled_tokens >= len(prompt) - 1
        assert outputs[0].cached_tokens == 0
        assert outputs[0].pull_s is not None
    load = await decode.load()
    assert load.pulled_tokens_total - before.pulled_tokens_total >= sum(LENGTHS) - len(LENGTHS)
    assert load.prompt_tokens_total - before.prompt_tokens_total == sum(LENGTHS)
    assert load.pull_failures_total == before.pull_failures_total
    assert load.pull_latency_ms is not None


async def test_outputs_equal_the_aggregated_engines_all_at_once_in_caches_that_are_too_small(
    aggregated: list[list[int]], engines: list[Subject]
) -> None:
    prefill, decode = engines
    assert prefill.info.num_kv_blocks * prefill.info.block_size < sum(LENGTHS)
    before = await decode.load()
    served = await asyncio.gather(*(_serve(prefill, decode, prompt, salt="all") for prompt in PROMPTS))
    assert [tokens(outputs) for outputs in served] == aggregated
    after = await decode.load()
    assert after.pulled_tokens_total - before.pulled_tokens_total >= sum(LENGTHS) - len(LENGTHS)
    assert after.pull_failures_total == before.pull_failures_total


async def test_cancelled_requests_leave_no_blocks_behind(aggregated: list[list[int]], engines: list[Subject]) -> None:
    prefill, decode = engines
    for attempt in range(4):  # more than the caches hold, so that blocks that stay would be missed
        handles = await asyncio.gather(*(_prefill(prefill, prompt, salt=f"c{attempt}") for prompt in PROMPTS[-6:]))
        requests = [
            _request(prompt, kv=handle, cache_salt=f"c{attempt}")
            for prompt, handle in zip(PROMPTS[-6:], handles, strict=True)
        ]
        running = [asyncio.create_task(decode.run(request)) for request in requests]
        for index, request in enumerate(requests):
            await asyncio.sleep(0.004 * index)  # spread over waiting, pulling and decoding
            await decode.engine.abort(request.request_id)
        for outputs in await asyncio.gather(*running):
            assert outputs[-1].finish_reason in ("abort", "length")
    served = await asyncio.gather(*(_serve(prefill, decode, prompt, salt="after") for prompt in PROMPTS))
    assert [tokens(outputs) for outputs in served] == aggregated


async def test_a_prefix_that_a_handle_covers_is_pulled_and_the_rest_computed(
    aggregated: list[list[int]], engines: list[Subject]
) -> None:
    prefill, decode = engines
    handle = await _prefill(prefill, PROMPTS[-1][:1025], salt="part")
    outputs = await decode.run(_request(PROMPTS[-1], kv=handle, cache_salt="part"))
    assert outputs[0].pulled_tokens == 1025
    assert tokens(outputs) == aggregated[-1]


async def test_both_pull_from_each_other(aggregated: list[list[int]], engines: list[Subject]) -> None:
    one, two = engines
    there = (_serve(one, two, prompt, salt="there") for prompt in PROMPTS[8:13])
    back = (_serve(two, one, prompt, salt="back") for prompt in PROMPTS[13:18])
    served = await asyncio.gather(*there, *back)
    assert [tokens(outputs) for outputs in served] == aggregated[8:18]
    assert all(outputs[0].pulled_tokens for outputs in served)


async def test_a_handle_that_was_used_is_not_good_again(
    kind: str, aggregated: list[list[int]], engines: list[Subject]
) -> None:
    if kind == "nixl":
        pytest.skip("vLLM's connector does not look")
    prefill, decode = engines
    handle = await _prefill(prefill, PROMPTS[9], salt="twice")
    before = await decode.load()
    for name in ("x", "y"):  # other blocks take the place of those that were pulled
        assert tokens(await decode.run(_request(PROMPTS[9], kv=handle, cache_salt=name))) == aggregated[9]
        for prompt in PROMPTS[-8:]:
            await prefill.run(_request(prompt, cache_salt=name))
    assert (await decode.load()).pull_failures_total == before.pull_failures_total + 1


async def test_a_frozen_engine_costs_a_recompute_and_is_pulled_from_again_when_it_thaws(
    kind: str, aggregated: list[list[int]], engines: list[Subject]
) -> None:
    if kind == "nixl":
        pytest.skip("vLLM's connector waits for its peers on its own terms")
    prefill, decode = engines
    handle = await _prefill(prefill, PROMPTS[10], salt="frozen")
    before = await decode.load()
    prefill.engine.signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        outputs = await decode.run(_request(PROMPTS[10], kv=handle, cache_salt="frozen"))
        assert time.monotonic() - began < 4 * SILENCE_S
    finally:
        prefill.engine.signal(signal.SIGCONT)
    assert tokens(outputs) == aggregated[10]
    assert outputs[0].pulled_tokens == 0
    assert (await decode.load()).pull_failures_total == before.pull_failures_total + 1
    outputs = await _serve(prefill, decode, PROMPTS[11], salt="thawed")
    assert tokens(outputs) == aggregated[11]
    assert outputs[0].pulled_tokens > 0


async def test_an_engine_that_was_killed_costs_a_recompute(aggregated: list[list[int]], engines: list[Subject]) -> None:
    prefill, decode = engines
    handle = await _prefill(prefill, PROMPTS[10], salt="killed")
    before = await decode.load()
    await prefill.engine.kill()
    outputs = await decode.run(_request(PROMPTS[10], kv=handle, cache_salt="killed"))
    assert tokens(outputs) == aggregated[10]
    assert (await decode.load()).pull_failures_total == before.pull_failures_total + 1


async def _serve(prefill: Subject, decode: Subject, prompt: list[int], *, salt: str) -> list[EngineOutput]:
    return await decode.run(_request(prompt, kv=await _prefill(prefill, prompt, salt=salt), cache_salt=salt))


async def _prefill(engine: Subject, prompt: list[int], *, salt: str) -> KvHandle:
    handle = (await engine.run(_request(prompt, prefill_only=True, cache_salt=salt)))[-1].kv
    assert handle is not None
    return handle


def _request(prompt: list[int], **extra: Any) -> EngineRequest:
    return EngineRequest(request_id=RequestId(f"r{next(_numbers)}"), token_ids=prompt, sampling=GREEDY, **extra)
