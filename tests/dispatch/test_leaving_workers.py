"""A worker that leaves hands its running requests over, with their KV: mock engines behind real channels."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from hpcserve.agent.leaving import Leaving
from hpcserve.engine.mock.engine import MockEngine
from hpcserve.engine.protocol import EngineContext
from hpcserve.types import EngineOutput, EngineRequest, RequestId, Role, Sampling, WorkerId, WorkerState
from tests.dispatch.conftest import Cell

NAMES = (WorkerId("both-0-m"), WorkerId("both-1-m"))
NUM_PROMPT = 1000


@pytest.fixture
async def engines(cell: Cell, tmp_path: Path) -> AsyncIterator[dict[WorkerId, MockEngine]]:
    mock = cell.config.engine.mock.model_copy(update={"speedup": 2.0})
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
