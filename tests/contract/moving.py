"""Moves a running request from one engine to another at a chosen token, with the parts that do it in a deployment."""

from __future__ import annotations

import asyncio

import msgspec

from hpcserve.agent.streams import Stream
from hpcserve.dispatch.progress import Progress
from hpcserve.engine.push import run_of
from hpcserve.errors import WorkerLeaving, WorkerLost
from hpcserve.observability.metrics import DispatchCounts
from hpcserve.types import Caller, EngineOutput, EngineRequest, WorkerId
from tests.contract.engine_subjects import WAIT_S, Subject


class Moved:
    """What a client saw of one sequence, and what is known of its moves."""

    def __init__(self, request: EngineRequest) -> None:
        self.outputs: list[EngineOutput] = []
        self.counts = DispatchCounts()
        self.pulled_tokens = 0  # by the worker that has it now
        self.taken: list[WorkerId] = []
        self._enough = asyncio.Event()
        self._num_wanted = 0
        self.progress = Progress(request, self._take, lambda: None, Caller(), self.taken.append, self.counts)

    async def run_on(
        self, subject: Subject, num_tokens: int | None = None, *, with_kv: bool = True, beside: Moved | None = None
    ) -> None:
        """Run what remains on an engine, and have it leave once there are `num_tokens` in all; None: to the end.

        One that is not streamed says nothing until then: `beside` it another one tells how far they are.
        """
        watched = beside or self
        request = msgspec.structs.replace(self.progress.remaining(), kv=self.progress.kv)
        self.progress.is_prefilling = True
        if num_tokens is not None:
            watched._enough.clear()
            watched._num_wanted = num_tokens
        error: list[Exception] = []

        def take(output: EngineOutput) -> None:
            self.pulled_tokens = output.pulled_tokens or self.pulled_tokens
            try:
                self.progress.take(output)
            except WorkerLost as err:
                error.append(err)

        self.pulled_tokens = 0
        run = run_of(subject.engine)
        stream = Stream(request, take)
        running = asyncio.create_task(run(request, stream.take))
        if num_tokens is not None:
            await asyncio.wait_for(watched._enough.wait(), WAIT_S)
            parting = asyncio.create_task(stream.part(subject.engine))
            await asyncio.wait_for(running, WAIT_S)
            assert stream.is_cut, "it had ended before it could leave"
            assert await stream.leave(run, with_kv=with_kv) is with_kv
            stream.end()
            await parting
            assert isinstance(error.pop(), WorkerLeaving)
            self.progress.lost_on.append(subject.info.engine)  # type: ignore[arg-type]  # any name will do
        else:
            await asyncio.wait_for(running, WAIT_S)
        assert not error

    def _take(self, output: EngineOutput) -> None:
        self.outputs.append(output)
        if len(self.progress.token_ids) >= self._num_wanted > 0:
            self._enough.set()


async def moved(old: Subject, new: Subject, request: EngineRequest, after: int, *, with_kv: bool = True) -> Moved:
    """Run a request on `old` for about `after` tokens, and the rest on `new`."""
    sequence = Moved(request)
    await sequence.run_on(old, after, with_kv=with_kv)
    await sequence.run_on(new)
    return sequence
