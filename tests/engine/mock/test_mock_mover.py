"""Mock engines whose handles stand for real bytes: they are moved, checked, and given up when a peer is gone."""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from hpcserve.engine.mock import engine as mock_engine
from hpcserve.kv.transport import Finished
from hpcserve.types import EngineOutput, EngineRequest, RequestId, Sampling
from tests.contract.engine_subjects import Subject, make_config, make_context, over_mpi, start_subject, tokens
from tests.contract.rank_engines import started
from tests.engine.vllm.loop_transport import Loop, LoopTransport

_numbers = count()
PROMPT = list(range(1000, 1640))


class PromptTransport(LoopTransport):
    """Delivers what is asked for as soon as it may."""

    is_stuck = False

    def poll(self) -> tuple[list[Finished], list[bytes]]:
        if not self.is_stuck:
            self.deliver()
        return super().poll()


@pytest_asyncio.fixture
async def pair(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[list[Subject]]:
    loop = Loop()
    monkeypatch.setattr(mock_engine, "open_transport", lambda kind, **_: PromptTransport(loop))
    config = make_config("mock", None)
    config = config.model_copy(update={"kv": config.kv.model_copy(update={"transport": "nixl"})})
    made = [mock_engine.MockEngine(config, make_context(name, tmp_path)) for name in ("a-0-1", "b-0-1")]
    yield [await start_subject(each) for each in made]
    for each in made:
        await each.stop()


def request(prompt: list[int] = PROMPT, **extra: Any) -> EngineRequest:
    name = RequestId(f"r{next(_numbers)}")
    return EngineRequest(request_id=name, token_ids=prompt, sampling=Sampling(max_tokens=4), **extra)


async def served(one: Subject, two: Subject, prompt: list[int] = PROMPT) -> list[EngineOutput]:
    handle = (await one.run(request(prompt, prefill_only=True)))[-1].kv
    return await two.run(request(prompt, kv=handle))


async def test_bytes_arrive_and_count_as_pulled(pair: list[Subject]) -> None:
    outputs = await served(*pair)
    assert outputs[0].pulled_tokens == len(PROMPT)
    assert (await pair[1].load()).pull_failures_total == 0


async def test_bytes_that_are_not_what_the_handle_names_are_a_failed_pull(
    pair: list[Subject], caplog: pytest.LogCaptureFixture
) -> None:
    one, two = pair
    handle = (await one.run(request(prefill_only=True)))[-1].kv
    one.engine._mover._memory[0][handle.params["slots"][3], 17] += 1
    outputs = await two.run(request(kv=handle))
    assert outputs[0].pulled_tokens == 0
    assert (await two.load()).pull_failures_total == 1
    assert "not what the handle names" in caplog.text


async def test_a_handle_is_good_once(pair: list[Subject]) -> None:
    one, two = pair
    handle = (await one.run(request(prefill_only=True)))[-1].kv
    await two.run(request(kv=handle))
    async with asyncio.timeout(5):
        while one.engine._mover._offers:
            await asyncio.sleep(0)
    assert not await two.engine._mover._fetch(handle)


async def test_an_aborted_request_ends_while_its_bytes_are_under_way(pair: list[Subject]) -> None:
    one, two = pair
    transport = two.engine._mover._transport
    handle = (await one.run(request(prefill_only=True)))[-1].kv
    transport.is_stuck = True
    asked = request(kv=handle)
    running = asyncio.create_task(two.run(asked))
    async with asyncio.timeout(5):
        while not transport.waiting:
            await asyncio.sleep(0)
    await two.engine.abort(asked.request_id)
    assert [output.finish_reason for output in await running] == ["abort"]
    transport.is_stuck = False
    assert (await served(one, two))[0].pulled_tokens > 0
    assert len(two.engine._mover._free[1]) == 4096


async def test_many_handles_that_nobody_fetches_make_room_for_newer_ones(pair: list[Subject]) -> None:
    one, two = pair
    for number in range(40):
        await one.run(request([number + 10] * 4000, prefill_only=True))
    assert (await served(one, two))[0].pulled_tokens == len(PROMPT)


async def test_engines_do_without_bytes_when_no_transport_is_named(tmp_path: Path) -> None:
    engine = mock_engine.MockEngine(make_config("mock", None), make_context("a-0-1", tmp_path))
    subject = await start_subject(engine)
    try:
        assert subject.info.kv_transport == "mock"
        assert engine._mover is None
    finally:
        await engine.stop()


@pytest.mark.real
@pytest.mark.timeout(90)
async def test_a_hundred_requests_at_once_move_their_bytes_over_mpi(tmp_path: Path) -> None:
    if shutil.which("mpirun") is None or importlib.util.find_spec("mpi4py") is None:
        pytest.skip("no MPI")
    config = over_mpi(make_config("mock", None))
    contexts = [make_context(name, tmp_path) for name in ("a-0-1", "b-0-1", "c-0-1")]
    async with started(tmp_path, [(config, context) for context in contexts]) as ranks:
        one, two, three = [await start_subject(engine) for engine in ranks]
        assert one.info.kv_transport == "mpi"
        prompts = [[number + 10] * 640 for number in range(100)]
        pairs = [(one, two), (two, three), (three, one), (two, one)]
        runs = [served(*pairs[number % 4], prompt) for number, prompt in enumerate(prompts)]
        outputs = await asyncio.gather(*runs)
        assert all(each[0].pulled_tokens == 640 for each in outputs)
        assert all(len(tokens(each)) == 4 for each in outputs)
        handle = (await one.run(request([5] * 640, prefill_only=True)))[-1].kv
        await one.engine.kill()
        outputs = await two.run(request([5] * 640, kv=handle))
        assert outputs[0].pulled_tokens == 0
        assert (await two.load()).pull_failures_total == 1
        for each in (two, three):
            await each.engine.stop()
