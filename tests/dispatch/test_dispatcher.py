"""The request path over real channels: what the caller sees when all goes well, and when workers are lost."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from hpcserve.errors import BadRequest, EngineError, Unavailable
from hpcserve.types import EngineOutput, WorkerState
from tests.dispatch.conftest import Cell, request


def text_of(outputs: list[EngineOutput]) -> str:
    return "".join(output.text for output in outputs)


UNDISTURBED = "".join(f"{position} " for position in range(100, 110))


async def released(cell: Cell) -> None:
    async with asyncio.timeout(5):
        while cell.router.stats().active_requests:
            await asyncio.sleep(0.01)


async def test_every_delta_reaches_the_caller_and_the_booking_is_released(cell: Cell) -> None:
    await cell.add("both")
    outputs: list[EngineOutput] = []
    await cell.dispatcher.run(request(), outputs.append)
    assert text_of(outputs) == UNDISTURBED
    assert [output.finish_reason for output in outputs[-2:]] == [None, "length"]
    await released(cell)


async def test_without_a_worker_a_new_request_is_refused_at_once(cell: Cell) -> None:
    with pytest.raises(Unavailable, match="READY"):
        await asyncio.wait_for(cell.dispatcher.run(request(), lambda output: None), 2)


@pytest.mark.parametrize("pools", [["both"], ["prefill", "decode"]])
async def test_what_the_engine_refuses_is_the_clients_fault_and_is_not_tried_elsewhere(
    cell: Cell, pools: list[str]
) -> None:
    engines = [await cell.add(pool) for pool in pools]
    for engine in engines:
        engine.refusal = "no such grammar"
    with pytest.raises(BadRequest, match="refuses this request: no such grammar"):
        await cell.dispatcher.run(request(num_prompt=1000), lambda output: None)
    assert sum(len(engine.seen) for engine in engines) == 1
    await released(cell)


async def test_a_prompt_is_prefilled_elsewhere_and_its_handle_goes_to_the_decode_worker(cell: Cell) -> None:
    prefill, decode = await cell.add("prefill"), await cell.add("decode")
    outputs: list[EngineOutput] = []
    await cell.dispatcher.run(request(num_prompt=1000), outputs.append)
    assert [seen.prefill_only for seen in prefill.seen] == [True]
    handle = decode.seen[0].kv
    assert handle is not None
    assert handle.source == prefill.worker
    assert len(outputs) == 10
    await released(cell)


async def test_a_short_prompt_stays_on_the_decode_worker(cell: Cell) -> None:
    prefill, decode = await cell.add("prefill"), await cell.add("decode")
    await cell.dispatcher.run(request(num_prompt=20), lambda output: None)
    assert not prefill.seen
    assert decode.seen[0].kv is None


async def test_a_lost_worker_costs_the_client_nothing(cell: Cell) -> None:
    engines = [await cell.add("both"), await cell.add("both")]
    for engine in engines:
        engine.hold_at(105)
    outputs: list[EngineOutput] = []
    running = asyncio.create_task(cell.dispatcher.run(request(), outputs.append))
    await asyncio.wait(
        [asyncio.create_task(engine.reached.wait()) for engine in engines], return_when="FIRST_COMPLETED"
    )
    first = next(engine for engine in engines if engine.seen)
    second = next(engine for engine in engines if engine is not first)
    second.hold_at(105).set()
    await cell.planes[first.worker].close()
    await asyncio.wait_for(running, 5)
    assert text_of(outputs) == UNDISTURBED
    resumed = second.seen[0]
    assert resumed.token_ids == list(range(105))
    assert (resumed.num_resumed, resumed.sampling.max_tokens) == (5, 5)
    assert [output.cached_tokens for output in outputs if output.cached_tokens is not None] == [7]
    assert cell.dispatcher.counts.reassigned == 1
    await released(cell)


async def test_an_engine_that_aborts_on_its_own_is_left_like_a_lost_one(cell: Cell) -> None:
    first = await cell.add("both")
    gate = first.hold_at(104)
    outputs: list[EngineOutput] = []
    running = asyncio.create_task(cell.dispatcher.run(request(), outputs.append))
    await asyncio.wait_for(first.reached.wait(), 5)
    await cell.add("both")
    first.is_stopping = True
    gate.set()
    await asyncio.wait_for(running, 5)
    assert text_of(outputs) == UNDISTURBED
    assert "abort" not in {output.finish_reason for output in outputs}


async def test_a_request_that_lost_its_only_worker_waits_for_the_replacement(cell: Cell) -> None:
    first = await cell.add("both")
    first.hold_at(103)
    outputs: list[EngineOutput] = []
    running = asyncio.create_task(cell.dispatcher.run(request(), outputs.append))
    await asyncio.wait_for(first.reached.wait(), 5)
    cell.roster.end(first.worker, WorkerState.FAILED, "killed")
    await cell.planes[first.worker].close()
    await cell.told(first.worker, present=False)
    assert not running.done()
    await cell.add("both")
    await asyncio.wait_for(running, 5)
    assert text_of(outputs) == UNDISTURBED


async def test_a_frozen_worker_is_left_once_the_head_gives_it_up(cell: Cell) -> None:
    first = await cell.add("both")
    first.hold_at(103)
    outputs: list[EngineOutput] = []
    running = asyncio.create_task(cell.dispatcher.run(request(), outputs.append))
    await asyncio.wait_for(first.reached.wait(), 5)
    await cell.add("both")
    cell.roster.end(first.worker, WorkerState.FAILED, "lost")  # its connection stays open
    await asyncio.wait_for(running, 5)
    assert text_of(outputs) == UNDISTURBED


async def test_a_lost_prefill_worker_leaves_the_prompt_to_the_decode_worker(cell: Cell) -> None:
    prefill, decode = await cell.add("prefill"), await cell.add("decode")
    prefill.hold_at(0)
    outputs: list[EngineOutput] = []
    running = asyncio.create_task(cell.dispatcher.run(request(num_prompt=1000), outputs.append))
    await asyncio.wait_for(prefill.reached.wait(), 5)
    await cell.planes[prefill.worker].close()
    await asyncio.wait_for(running, 5)
    assert decode.seen[0].kv is None
    assert len(outputs) == 10
    assert cell.dispatcher.counts.prefills_lost == 1


async def test_cancelling_aborts_the_request_in_the_engine(cell: Cell) -> None:
    engine = await cell.add("both")
    engine.hold_at(103)
    running = asyncio.create_task(cell.dispatcher.run(request(), lambda output: None))
    await asyncio.wait_for(engine.reached.wait(), 5)
    running.cancel()
    await asyncio.wait_for(engine.closing.wait(), 10)
    assert engine.closed == ["r1"]
    await released(cell)


async def test_a_request_that_kills_workers_fails_after_a_bounded_number(cell: Cell) -> None:
    engines = [await cell.add("both") for _ in range(cell.config.frontend.max_attempts)]
    for engine in engines:
        engine.hold_at(100)
    running = asyncio.create_task(cell.dispatcher.run(request(), lambda output: None))
    waiting = {asyncio.create_task(engine.reached.wait()): engine for engine in engines}
    for _ in engines:
        done, _ = await asyncio.wait(waiting, return_when="FIRST_COMPLETED", timeout=5)
        engine = waiting.pop(done.pop())
        await cell.planes[engine.worker].close()
    with pytest.raises(EngineError, match="lost on 4 workers"):
        await asyncio.wait_for(running, 5)
    await released(cell)


async def test_an_error_in_the_callers_sink_ends_the_request_everywhere(cell: Cell) -> None:
    engine = await cell.add("both")
    engine.hold_at(109)

    def refuse(output: EngineOutput) -> None:
        raise BrokenPipeError("the client is gone")

    with pytest.raises(BrokenPipeError):
        await asyncio.wait_for(cell.dispatcher.run(request(), refuse), 5)
    await asyncio.wait_for(engine.closing.wait(), 10)
    await released(cell)


async def assigned(cell: Cell, monkeypatch: pytest.MonkeyPatch, **fields: object) -> None:
    """Have the router answer with these fields over what it would have chosen."""
    place = cell.router.place
    monkeypatch.setattr(
        cell.router, "place", lambda now: [msgspec.structs.replace(each, **fields) for each in place(now)]
    )


async def test_a_warm_prefix_is_pulled_from_its_holder_by_whoever_computes_the_prompt(
    cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder, worker = await cell.add("both"), await cell.add("both")
    await assigned(cell, monkeypatch, decode=worker.worker, source=holder.worker, source_tokens=64)
    outputs: list[EngineOutput] = []
    await cell.dispatcher.run(request(), outputs.append)
    assert [(seen.prefill_only, len(seen.token_ids)) for seen in holder.seen] == [(True, 65)]
    handle = worker.seen[0].kv
    assert handle is not None
    assert (handle.source, handle.num_tokens) == (holder.worker, 65)
    assert text_of(outputs) == UNDISTURBED
    assert cell.dispatcher.counts.prefixes_pulled == 1


async def test_a_prefill_worker_pulls_the_prefix_and_hands_on_the_whole_prompt(
    cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder, prefill, decode = await cell.add("prefill"), await cell.add("prefill"), await cell.add("decode")
    await assigned(cell, monkeypatch, prefill=prefill.worker, source=holder.worker, source_tokens=512)
    await cell.dispatcher.run(request(num_prompt=1000), lambda output: None)
    pulled, handed = prefill.seen[0].kv, decode.seen[0].kv
    assert pulled is not None
    assert handed is not None
    assert (pulled.source, pulled.num_tokens) == (holder.worker, 513)
    assert (handed.source, handed.num_tokens) == (prefill.worker, 1000)


async def test_a_prefix_whose_holder_is_lost_is_computed(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    holder, worker = await cell.add("both"), await cell.add("both")
    await assigned(cell, monkeypatch, decode=worker.worker, source=holder.worker, source_tokens=64)
    await cell.planes[holder.worker].close()
    outputs: list[EngineOutput] = []
    await cell.dispatcher.run(request(), outputs.append)
    assert worker.seen[0].kv is None
    assert text_of(outputs) == UNDISTURBED
    assert cell.dispatcher.counts.pulls_lost == 1


async def test_a_prefix_whose_holder_does_not_answer_in_time_is_computed(
    cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder, worker = await cell.add("both"), await cell.add("both")
    await assigned(cell, monkeypatch, decode=worker.worker, source=holder.worker, source_tokens=64)
    monkeypatch.setattr("hpcserve.dispatch.dispatcher._SOURCE_TIMEOUT_S", 0.05)
    holder.hold_at(0)
    outputs: list[EngineOutput] = []
    await cell.dispatcher.run(request(), outputs.append)
    assert worker.seen[0].kv is None
    assert text_of(outputs) == UNDISTURBED
    assert cell.dispatcher.counts.pulls_lost == 1
    await holder.closing.wait()
    assert holder.closed, "it was aborted there"
