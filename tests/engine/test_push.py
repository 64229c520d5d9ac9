"""Outputs by calls and outputs by iterating, each made of the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from hpcserve.engine.mock.engine import MockEngine
from hpcserve.engine.protocol import OnOutput, PushingEngine
from hpcserve.engine.push import iterate, run_of
from hpcserve.errors import EngineError
from hpcserve.types import EngineOutput, EngineRequest, RequestId, Sampling

REQUEST = EngineRequest(request_id=RequestId("r"), token_ids=[1, 2, 3], sampling=Sampling(max_tokens=3))


def output(number: int) -> EngineOutput:
    return EngineOutput(request_id=REQUEST.request_id, token_ids=(number,))


class Pushing:
    """Hands over three outputs at once and then ends as `how` says."""

    def __init__(self, how: str) -> None:
        self.how = how
        self.was_cancelled = False

    async def run(self, request: EngineRequest, on_output: OnOutput) -> None:
        for number in range(3):
            on_output(output(number))
        if self.how == "dies":
            raise EngineError("dead")
        if self.how == "hangs":
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                self.was_cancelled = True
                raise


class Pulled:
    """Has no `run`."""

    async def generate(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        for number in range(3):
            yield output(number)


async def test_iterating_yields_what_was_handed_over_and_ends() -> None:
    outputs = [each async for each in iterate(Pushing("ends").run, REQUEST)]
    assert outputs == [output(0), output(1), output(2)]


async def test_an_error_comes_after_the_outputs_that_were_there() -> None:
    outputs = iterate(Pushing("dies").run, REQUEST)
    assert [await anext(outputs) for _ in range(3)] == [output(0), output(1), output(2)]
    with pytest.raises(EngineError, match="dead"):
        await anext(outputs)


async def test_closing_the_iterator_cancels_the_request() -> None:
    engine = Pushing("hangs")
    async with aclosing(iterate(engine.run, REQUEST)) as outputs:
        await anext(outputs)
    assert engine.was_cancelled


async def test_cancelling_the_reader_cancels_the_request() -> None:
    engine, seen = Pushing("hangs"), asyncio.Queue[EngineOutput]()

    async def read() -> None:
        async for each in iterate(engine.run, REQUEST):
            seen.put_nowait(each)

    reader = asyncio.create_task(read())
    for _ in range(3):
        await seen.get()
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
    assert engine.was_cancelled


async def test_an_engine_without_run_is_iterated_over() -> None:
    engine: Any = Pulled()
    assert not isinstance(engine, PushingEngine)
    outputs: list[EngineOutput] = []
    await run_of(engine)(REQUEST, outputs.append)
    assert outputs == [output(0), output(1), output(2)]


async def test_an_engine_with_run_is_not() -> None:
    engine = MockEngine.__new__(MockEngine)
    assert run_of(engine) == engine.run
