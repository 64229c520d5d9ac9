"""Units on one engine: whole outputs in order, what ends them, and the gate that holds them back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from hpcserve.agent.units import Units
from hpcserve.config import Config
from hpcserve.engine.factory import make_engine
from hpcserve.engine.protocol import AsyncEngine, EngineContext
from hpcserve.errors import EngineError, WorkerLost
from hpcserve.types import EngineRequest, RequestId, Role, Sampling, WorkerId


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    config = Config.model_validate({"engine": {"kind": "mock", "mock": {"speedup": 50}}})
    context = EngineContext(
        worker=WorkerId("both-0-a"), role=Role.BOTH, host="127.0.0.1", moves_kv=True, scratch=tmp_path
    )
    engine = make_engine(config, context)
    await engine.start(lambda _: None)
    yield engine
    await engine.stop()


def request(name: str, num_tokens: int = 5, first: int = 1) -> EngineRequest:
    sampling = Sampling(max_tokens=num_tokens, temperature=0, logprobs=1, ignore_eos=True)
    return EngineRequest(request_id=RequestId(name), token_ids=list(range(first, first + 40)), sampling=sampling)


def units_of(engine: AsyncEngine, deaths: list[str] | None = None, *, prefills: bool = True) -> Units:
    return Units(engine, prefills=prefills, on_death=(deaths if deaths is not None else []).append)


async def test_outputs_are_whole_and_in_order(engine: AsyncEngine) -> None:
    outputs = await units_of(engine).run("u", [request("a", 7), request("b", 1), request("c", 3, first=9)])
    assert [each.request_id for each in outputs] == ["a", "b", "c"]
    assert [len(each.token_ids) for each in outputs] == [7, 1, 3]
    assert [len(each.logprobs) for each in outputs] == [7, 1, 3]
    assert all(each.finish_reason == "length" and each.cached_tokens is not None for each in outputs)
    deltas = [each async for each in engine.generate(request("a", 7))]
    assert outputs[0].text == "".join(each.text for each in deltas)
    assert outputs[0].token_ids == tuple(token for each in deltas for token in each.token_ids)


async def test_a_refused_request_says_so_beside_the_others(engine: AsyncEngine) -> None:
    too_long = msgspec.structs.replace(request("b"), token_ids=[1] * 200_000)
    good, bad = await units_of(engine).run("u", [request("a"), too_long])
    assert good.finish_reason == "length"
    assert (bad.finish_reason, bad.is_refusal) == ("error", True)


async def test_prompts_are_computed_for_others(engine: AsyncEngine) -> None:
    handles = await units_of(engine).prefill("u", [request("a")])
    assert [each.num_tokens for each in handles if each] == [40]
    assert await units_of(engine, prefills=False).prefill("u", [request("a")]) == [None]


async def test_aborted_units_leave_the_engine(engine: AsyncEngine) -> None:
    units = units_of(engine)
    running = asyncio.create_task(units.run("u", [request("a", 10_000)]))
    async with asyncio.timeout(5):
        while not engine.load().num_running:
            await asyncio.sleep(0.005)
    assert not await units.drained(0.01)
    units.abort("u")
    units.abort("unknown")
    with pytest.raises(WorkerLost, match="aborted"):
        await running
    assert await units.drained(1)
    async with asyncio.timeout(5):
        while engine.load().num_running:
            await asyncio.sleep(0.005)


async def test_a_dead_engine_fails_units_once_the_head_knows(engine: AsyncEngine) -> None:
    deaths: list[str] = []
    units = units_of(engine, deaths)
    await engine.stop()
    running = asyncio.create_task(units.run("u", [request("a"), request("b")]))
    async with asyncio.timeout(5):
        while not deaths:
            await asyncio.sleep(0)
    assert not running.done()
    units.close()
    with pytest.raises(EngineError, match="not running"):
        await running


async def test_no_request_starts_before_the_gate_opens(engine: AsyncEngine) -> None:
    entered: list[str] = []
    left: list[str] = []
    is_open = asyncio.Event()

    @asynccontextmanager
    async def gate(each: EngineRequest) -> AsyncIterator[None]:
        entered.append(each.request_id)
        await is_open.wait()
        yield
        left.append(each.request_id)

    units = Units(engine, prefills=True, on_death=lambda _: None, gate=gate)
    running = asyncio.create_task(units.run("u", [request("a"), request("b")]))
    async with asyncio.timeout(5):
        while len(entered) < 2:
            await asyncio.sleep(0)
    assert engine.load().num_running == 0
    is_open.set()
    await running
    assert sorted(left) == ["a", "b"]
