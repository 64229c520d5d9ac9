"""A worker that leaves hands its running requests over, with their KV: mock engines behind real channels."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from hpcserve.agent import streams
from hpcserve.agent.leaving import Leaving, when_to_leave
from hpcserve.config import Config
from hpcserve.engine.mock.engine import MockEngine
from hpcserve.engine.protocol import EngineContext
from hpcserve.types import EngineOutput, EngineRequest, RequestId, Role, Sampling, WorkerId, WorkerState
from tests.dispatch.conftest import Cell

NAMES = (WorkerId("both-0-m"), WorkerId("both-1-m"))
NUM_PROMPT = 1000


@pytest.fixture
async def engines(cell: Cell, tmp_path: Path) -> AsyncIterator[dict[WorkerId, MockEngine]]:
    mock = cell.config.engine.mock.model_copy(update={"speedup": 4.0})
    config = cell.config.model_copy(update={"engine": cell.config.engine.model_copy(update={"mock": mock})})
    engines: dict[WorkerId, MockEngine] = {}
    for name in NAMES:
        context = EngineContext(worker=name, role=Role.BOTH, host="127.0.0.1", moves_kv=True, scratch=tmp_path)
        engine = engines[name] = MockEngine(config, context)
        await engine.start(lambda events: None)
        await cell.serve(name, "both", engine)
    yield engines
    for engine in engines.values():
        await engine.stop()


def make_request(name: str = "r1", *, max_tokens: int = 200, stop: tuple[str, ...] = ()) -> EngineRequest:
    return EngineRequest(
        request_id=RequestId(name),
        token_ids=[97 + index % 26 for index in range(NUM_PROMPT)],
        sampling=Sampling(max_tokens=max_tokens, stop=stop, logprobs=2),
    )


class Run:
    """A request that runs on the deployment."""

    def __init__(self, cell: Cell, request: EngineRequest, act_after: int = 50) -> None:
        self.outputs: list[EngineOutput] = []
        self.reached = asyncio.Event()
        self._act_after = act_after
        self.task = asyncio.create_task(cell.dispatcher.run(request, self._take))

    def _take(self, output: EngineOutput) -> None:
        self.outputs.append(output)
        if len(self.outputs) >= self._act_after:
            self.reached.set()

    @property
    def text(self) -> str:
        return "".join(output.text for output in self.outputs)

    @property
    def token_ids(self) -> list[int]:
        return [token for output in self.outputs for token in output.token_ids]


async def undisturbed(engine: MockEngine, request: EngineRequest) -> list[EngineOutput]:
    alone = msgspec.structs.replace(request, request_id=RequestId("alone"), cache_salt="alone")
    return [output async for output in engine.generate(alone)]


def always(answer: bool) -> Callable[[], Awaitable[bool]]:
    async def has_taker() -> bool:
        return answer

    return has_taker


def where_it_runs(cell: Cell) -> WorkerId:
    return next(name for name in NAMES if cell.planes[name].streams)


def drain(cell: Cell, worker: WorkerId) -> None:
    info = cell.roster.get(worker)
    assert info is not None
    cell.roster._put(msgspec.structs.replace(info, state=WorkerState.DRAINING))


async def test_a_request_goes_on_elsewhere_with_its_kv(cell: Cell, engines: dict[WorkerId, MockEngine]) -> None:
    request = make_request()
    run = Run(cell, request)
    await asyncio.wait_for(run.reached.wait(), 10)
    old = where_it_runs(cell)
    new = next(name for name in NAMES if name != old)
    drain(cell, old)
    assert await Leaving(cell.planes[old], always(True)).run(time.time() + 0.2), "its KV was fetched, too"
    await asyncio.wait_for(run.task, 10)
    expected = await undisturbed(engines[old], request)
    assert run.text == "".join(output.text for output in expected)
    assert [output.logprobs for output in run.outputs] == [output.logprobs for output in expected]
    assert [output.finish_reason for output in run.outputs] == [output.finish_reason for output in expected]
    moved = engines[new].load()
    assert moved.pulled_tokens_total > NUM_PROMPT
    assert cell.dispatcher.counts.pauses.num("pulled") == 1
    assert cell.dispatcher.counts.pauses.num("recomputed") == 0
    assert [output.cached_tokens for output in run.outputs if output.cached_tokens is not None] == [0]


async def leave(cell: Cell, worker: WorkerId, within_s: float, *, has_taker: bool = True) -> bool:
    drain(cell, worker)
    return await asyncio.wait_for(Leaving(cell.planes[worker], always(has_taker)).run(time.time() + within_s), 10)


def other(worker: WorkerId) -> WorkerId:
    return next(name for name in NAMES if name != worker)


async def test_what_ends_in_time_stays(cell: Cell, engines: dict[WorkerId, MockEngine]) -> None:
    run = Run(cell, make_request(max_tokens=100))
    await asyncio.wait_for(run.reached.wait(), 10)
    old = where_it_runs(cell)
    assert await leave(cell, old, 20)
    await asyncio.wait_for(run.task, 10)
    assert cell.dispatcher.counts.reassigned == 0
    assert not engines[other(old)].load().prompt_tokens_total


async def test_what_would_take_too_long_does_not_wait_for_the_last_moment(
    cell: Cell, engines: dict[WorkerId, MockEngine]
) -> None:
    run = Run(cell, make_request(max_tokens=40_000))
    await asyncio.wait_for(run.reached.wait(), 10)
    old = where_it_runs(cell)
    began = time.monotonic()
    assert await leave(cell, old, 8)
    assert time.monotonic() - began < 4
    assert where_it_runs(cell) == other(old)
    run.task.cancel()


async def test_with_nobody_to_take_it_a_request_stays_to_the_last_moment_and_then_waits_for_the_next_worker(
    cell: Cell, engines: dict[WorkerId, MockEngine]
) -> None:
    request = make_request(max_tokens=400)
    run = Run(cell, request)
    await asyncio.wait_for(run.reached.wait(), 10)
    old = where_it_runs(cell)
    cell.roster.end(other(old), WorkerState.STOPPED, "")
    leaving = asyncio.create_task(leave(cell, old, 0.5, has_taker=False))
    for name in NAMES:
        await cell.told(name, present=name == old)
    async with asyncio.timeout(5):
        while cell.planes[old].streams:
            await asyncio.sleep(0.01)
    assert not run.task.done()
    await cell.serve(WorkerId("both-2-m"), "both", engines[other(old)])
    assert await leaving
    await asyncio.wait_for(run.task, 10)
    assert run.token_ids == [token for output in await undisturbed(engines[old], request) for token in output.token_ids]
    assert cell.dispatcher.counts.pauses.num("pulled") == 1


async def test_leaving_workers_are_no_fault_of_the_request(cell: Cell, engines: dict[WorkerId, MockEngine]) -> None:
    """It moves to and fro more often than it may be lost."""
    request = make_request(max_tokens=600)
    run = Run(cell, request)
    await asyncio.wait_for(run.reached.wait(), 10)
    for _ in range(cell.config.frontend.max_attempts + 2):
        async with asyncio.timeout(5):
            while not any(cell.planes[name].streams for name in NAMES):
                await asyncio.sleep(0.005)
        here = where_it_runs(cell)
        await asyncio.wait_for(cell.planes[here].part(next(iter(cell.planes[here].streams))), 5)
    await asyncio.wait_for(run.task, 10)
    assert run.text == "".join(output.text for output in await undisturbed(engines[NAMES[0]], request))


@pytest.mark.parametrize("goes_wrong", ["no handle", "no pull", "kv stays"])
async def test_without_its_kv_a_request_is_computed_again(
    cell: Cell, engines: dict[WorkerId, MockEngine], monkeypatch: pytest.MonkeyPatch, goes_wrong: str
) -> None:
    request = make_request(max_tokens=200)
    run = Run(cell, request)
    await asyncio.wait_for(run.reached.wait(), 10)
    old = where_it_runs(cell)
    if goes_wrong == "no handle":
        monkeypatch.setattr(streams, "_HANDLE_TIMEOUT_S", 0.0)
    elif goes_wrong == "no pull":
        monkeypatch.setattr("hpcserve.engine.mock.transfer.LEASE_S", -1.0)
    else:
        cell.planes[old].moves_kv = False
    assert await leave(cell, old, 0.1), "whoever computes needs no KV, and says so"
    await asyncio.wait_for(run.task, 10)
    assert run.text == "".join(output.text for output in await undisturbed(engines[old], request))
    assert cell.dispatcher.counts.pauses.num("recomputed") == 1
    assert cell.dispatcher.counts.pauses.num("pulled") == 0


async def test_a_client_that_hangs_up_in_the_middle_of_a_move_holds_nobody_up(
    cell: Cell, engines: dict[WorkerId, MockEngine]
) -> None:
    run = Run(cell, make_request(max_tokens=40_000))
    await asyncio.wait_for(run.reached.wait(), 10)
    old = where_it_runs(cell)
    parting = asyncio.create_task(cell.planes[old].part(next(iter(cell.planes[old].streams))))
    await asyncio.sleep(0)
    run.task.cancel()
    await asyncio.wait_for(parting, 5)
    assert await cell.planes[old].drained(5)
    await cell.dispatcher._agents.close()
    assert await cell.planes[old].all_taken(5)


def test_a_worker_leaves_as_told_and_before_its_job_ends() -> None:
    config = Config.model_validate({"cluster": {"drain_timeout_s": 30}, "renewal": {"leave_s": 10}})
    assert when_to_leave(None, None, config, 1000.0) == 1030.0
    assert when_to_leave(1005.0, None, config, 1000.0) == 1005.0
    assert when_to_leave(None, 1020.0, config, 1000.0) == 1010.0
    assert when_to_leave(1005.0, 1020.0, config, 1000.0) == 1005.0
