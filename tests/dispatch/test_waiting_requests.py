"""Requests that wait for a worker, over real channels: what they get, and what is left of them when they give up."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from hpcserve.errors import Overloaded, RateLimited, Unavailable
from hpcserve.types import Caller, EngineOutput, WorkerState
from tests.dispatch.conftest import Cell, ScriptedEngine, request

LONG = 2500  # tokens: prompts that do not share a pass


async def waiting(cell: Cell, number: int) -> None:
    async with asyncio.timeout(5):
        while cell.router.num_waiting != number:
            await asyncio.sleep(0.005)


def start(cell: Cell, name: str, tenant: str = "") -> asyncio.Task[None]:
    run = cell.dispatcher.run(request(LONG, name=name), lambda output: None, Caller(tenant=tenant))
    return asyncio.create_task(run)


async def busy(cell: Cell) -> tuple[ScriptedEngine, asyncio.Task[None]]:
    """Add a worker that computes a prompt until its gate is opened."""
    engine = await cell.add("both")
    engine.hold_at(LONG)
    running = start(cell, "first")
    await asyncio.wait_for(engine.reached.wait(), 5)
    return engine, running


async def test_a_request_begins_once_the_prompt_before_it_is_computed(cell: Cell) -> None:
    engine, first = await busy(cell)
    second = start(cell, "second")
    await waiting(cell, 1)
    assert [each.request_id for each in engine.seen] == ["first"]
    engine.hold_at(LONG).set()
    await asyncio.wait_for(asyncio.gather(first, second), 5)
    assert [each.request_id for each in engine.seen] == ["first", "second"]
    (buckets,) = cell.dispatcher.counts.queue.family().samples[-2:-1]
    assert buckets.value == 2, "both have waited, however shortly"


async def test_who_hangs_up_while_waiting_never_reaches_an_engine(cell: Cell) -> None:
    engine, first = await busy(cell)
    second, third = start(cell, "second"), start(cell, "third")
    await waiting(cell, 2)
    second.cancel()
    await waiting(cell, 1)
    engine.hold_at(LONG).set()
    await asyncio.wait_for(asyncio.gather(first, third), 5)
    assert second.cancelled()
    assert [each.request_id for each in engine.seen] == ["first", "third"]
    async with asyncio.timeout(5):
        while cell.router.stats().active_requests:
            await asyncio.sleep(0.005)


async def test_waiting_is_not_bounded_by_the_time_of_a_call(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    bounds: list[float] = []
    assign = cell.dispatcher._head.assign

    def note(route, *, timeout_s: float):  # type: ignore[no-untyped-def]
        bounds.append(timeout_s)
        return assign(route, timeout_s=timeout_s)

    monkeypatch.setattr(cell.dispatcher._head, "assign", note)
    await cell.add("both")
    await cell.dispatcher.run(request(), lambda output: None)
    assert bounds == [cell.config.router.queue.max_wait_s + 10]


@pytest.mark.parametrize("queue", [{"max_requests": 2, "max_requests_per_tenant": 1}])
async def test_too_many_are_refused_as_what_they_are(cell: Cell) -> None:
    _, first = await busy(cell)
    others = [start(cell, "second", "alice"), start(cell, "third", "bob")]
    await waiting(cell, 2)
    with pytest.raises(Overloaded) as overloaded:
        await asyncio.wait_for(start(cell, "fourth", "carol"), 5)
    assert overloaded.value.retry_after_s
    assert cell.dispatcher.counts.overloaded == 1
    others.pop().cancel()
    await waiting(cell, 1)
    with pytest.raises(RateLimited) as limited:
        await asyncio.wait_for(start(cell, "fifth", "alice"), 5)
    assert limited.value.retry_after_s
    assert cell.dispatcher.counts.overloaded == 1
    for each in (first, *others):
        each.cancel()


@pytest.mark.parametrize("queue", [{"max_wait_s": 0.05}])
async def test_who_waits_too_long_is_refused(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcserve.head.assigner._TICK_S", 0.02)
    _, first = await busy(cell)
    with pytest.raises(Overloaded, match="max_wait_s"):
        await asyncio.wait_for(start(cell, "second"), 5)
    assert not first.done()
    assert cell.dispatcher.counts.overloaded == 1
    first.cancel()


async def test_who_waits_when_the_head_goes_away_is_told(cell: Cell) -> None:
    _, first = await busy(cell)
    second = start(cell, "second")
    await waiting(cell, 1)
    await cell.service.close()
    with pytest.raises(Unavailable, match="not reachable"):
        await asyncio.wait_for(second, 5)
    first.cancel()


async def test_who_waits_survives_the_last_worker_and_goes_behind_what_was_under_way_there(cell: Cell) -> None:
    engine, first = await busy(cell)
    second = start(cell, "second")
    await waiting(cell, 1)
    cell.roster.end(engine.worker, WorkerState.FAILED, "killed")
    await cell.planes[engine.worker].close()
    await cell.told(engine.worker, present=False)
    assert not second.done()
    async with asyncio.timeout(5):
        while not cell.dispatcher.counts.reassigned:
            await asyncio.sleep(0.005)
    replacement = await cell.add("both")
    await asyncio.wait_for(asyncio.gather(first, second), 5)
    assert sorted(each.request_id for each in replacement.seen) == ["first", "second"]


async def assigned(cell: Cell, monkeypatch: pytest.MonkeyPatch, **fields: object) -> None:
    place = cell.router.place
    monkeypatch.setattr(
        cell.router, "place", lambda now: [msgspec.structs.replace(each, **fields) for each in place(now)]
    )


async def test_who_computes_the_prompt_is_told_what_was_reused(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = await cell.add("both")
    await assigned(cell, monkeypatch, reused_tokens=64)
    await cell.dispatcher.run(request(), lambda output: None)
    assert [(each.reused_tokens, each.moves_away) for each in worker.seen] == [(64, False)]


async def test_a_source_is_told_that_its_prefix_moves_away(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    holder, prefill, decode = await cell.add("prefill"), await cell.add("prefill"), await cell.add("decode")
    await assigned(
        cell, monkeypatch, prefill=prefill.worker, source=holder.worker, source_tokens=512, reused_tokens=512
    )
    outputs: list[EngineOutput] = []
    await cell.dispatcher.run(request(num_prompt=1000), outputs.append)
    assert [(each.reused_tokens, each.moves_away) for each in holder.seen] == [(0, True)]
    assert [(each.reused_tokens, each.moves_away) for each in prefill.seen] == [(512, False)]
    assert [(each.reused_tokens, each.moves_away) for each in decode.seen] == [(0, False)]


async def test_a_decode_worker_that_computes_after_all_is_told_too(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    prefill, decode = await cell.add("prefill"), await cell.add("decode")
    await assigned(cell, monkeypatch, reused_tokens=512)
    prefill.hold_at(0)
    running = asyncio.create_task(cell.dispatcher.run(request(num_prompt=1000), lambda output: None))
    await asyncio.wait_for(prefill.reached.wait(), 5)
    await cell.planes[prefill.worker].close()
    await asyncio.wait_for(running, 5)
    assert [each.reused_tokens for each in decode.seen] == [512]
