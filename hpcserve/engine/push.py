"""Outputs of a request handed over by plain calls (`PushingEngine.run`), or iterated over (`AsyncEngine.generate`).

A task that is woken for every token costs more than most of what is done with it. So engines that can give out their
outputs by calls do, and what iterates goes through here; what runs requests by calls can do so on any engine.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator

from hpcserve.engine.protocol import AsyncEngine, OnOutput, PushingEngine, Run
from hpcserve.types import EngineOutput, EngineRequest


def run_of(engine: AsyncEngine) -> Run:
    """Return `PushingEngine.run` of an engine, or the same by iterating over `generate` of one that has none."""
    if isinstance(engine, PushingEngine):
        return engine.run

    async def run(request: EngineRequest, on_output: OnOutput) -> None:
        async for output in engine.generate(request):
            on_output(output)

    return run


async def iterate(run: Run, request: EngineRequest) -> AsyncGenerator[EngineOutput]:
    """Yield what `run` gives out: an `AsyncEngine.generate` for engines that have `run`."""
    stream = _Stream()
    task = asyncio.create_task(run(request, stream.put), name=f"run {request.request_id}")
    task.add_done_callback(stream.end)
    try:
        while (output := await stream.get()) is not None:
            yield output
    finally:
        task.cancel()
        await asyncio.wait((task,))
    task.result()


class _Stream:
    """A queue with one reader. Cheaper than `asyncio.Queue`."""

    def __init__(self) -> None:
        self._outputs: deque[EngineOutput] = deque()
        self._has_ended = False
        self._waiter: asyncio.Future[None] | None = None

    def put(self, output: EngineOutput) -> None:
        self._outputs.append(output)
        self._wake()

    def end(self, task: asyncio.Task[None]) -> None:
        self._has_ended = True
        self._wake()

    async def get(self) -> EngineOutput | None:
        """Return the next output; None after the last. Safe to cancel."""
        while not self._outputs:
            if self._has_ended:
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._outputs.popleft()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
