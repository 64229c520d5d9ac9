"""Units of offline requests on one engine: all requests of a unit at once, one output a request when all have ended.

It knows nothing of Dask (`unit_tasks.py` does), nor of what else the engine has to do: `Gate` says when a request may
start.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext

import msgspec

from hpcserve.engine.protocol import AsyncEngine
from hpcserve.errors import EngineError, HpcserveError, WorkerLost
from hpcserve.types import EngineOutput, EngineRequest, KvHandle, RequestId, TokenLogprob

log = logging.getLogger(__name__)

Gate = Callable[[EngineRequest], AbstractAsyncContextManager[object]]
"""Entered before a request of a unit is given to the engine, and left when it has ended: it holds back offline work."""


def open_gate(request: EngineRequest) -> AbstractAsyncContextManager[object]:
    """Let every request start at once."""
    return nullcontext()


class Units:
    """Runs units, by key. All methods are called on the agent's event loop."""

    def __init__(
        self, engine: AsyncEngine, *, prefills: bool, on_death: Callable[[str], None], gate: Gate = open_gate
    ) -> None:
        """`on_death` is told why the engine died."""
        self._engine = engine
        self.prefills = prefills  # whether this worker computes prompts for others; changes with its role
        self._on_death = on_death
        self._gate = gate
        self._running: dict[str, asyncio.Task[list[EngineOutput]]] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._over = asyncio.Event()

    async def run(self, key: str, requests: Sequence[EngineRequest]) -> list[EngineOutput]:
        """Return the whole output of each request, in order; one that failed says so in its output.

        Raises `EngineError` when the engine died, once the head was told (`close`), and `WorkerLost` after `abort`.
        Cancelling, or `abort`, aborts all in the engine.
        """
        task = self._running[key] = asyncio.create_task(self._run_all(requests), name=f"unit {key}")
        self._idle.clear()
        try:
            await asyncio.wait((task,))
        finally:
            task.cancel()
            self._running.pop(key, None)
            if not self._running:
                self._idle.set()
        if task.cancelled():
            raise WorkerLost(f"{key} was aborted")
        error = task.exception()
        if isinstance(error, EngineError):
            self._on_death(error.message)
            await self._over.wait()  # else the next one might be sent here, to a dead engine
            raise EngineError(error.message)  # a new one: Dask pickles causes, and this one's leads back to itself
        return task.result()

    async def prefill(self, key: str, requests: Sequence[EngineRequest]) -> list[KvHandle | None]:
        """Compute the prompts and return where each one's KV is; None: the decode worker computes it. As `run`."""
        if not self.prefills:
            return [None] * len(requests)
        prompts = [
            msgspec.structs.replace(each, request_id=RequestId(f"{each.request_id}-prefill"), prefill_only=True)
            for each in requests
        ]
        return [each.kv for each in await self.run(key, prompts)]

    def abort(self, key: str) -> None:
        """End a unit soon. Unknown ones are ignored."""
        task = self._running.get(key)
        if task is not None:
            task.cancel()

    async def drained(self, timeout_s: float) -> bool:
        """Wait until no unit runs; False if `timeout_s` went by first."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """The engine has stopped, and the head knows it: what waited for that fails, and what still runs is aborted."""
        self._over.set()
        for task in self._running.values():
            task.cancel()

    async def _run_all(self, requests: Sequence[EngineRequest]) -> list[EngineOutput]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._run_one(each)) for each in requests]
        except* HpcserveError as err:
            raise _first(err) from err
        return [each.result() for each in tasks]

    async def _run_one(self, request: EngineRequest) -> EngineOutput:
        async with self._gate(request):
            try:
                return await _whole_output(self._engine, msgspec.structs.replace(request, streams=False))
            except HpcserveError:
                raise
            except Exception as err:
                log.exception("request %s failed in the engine", request.request_id)
                why = f"engine failed: {err!r}"
                return EngineOutput(request_id=request.request_id, finish_reason="error", error=why)


async def _whole_output(engine: AsyncEngine, request: EngineRequest) -> EngineOutput:
    """Return all deltas of a request as one."""
    first: EngineOutput | None = None
    token_ids: list[int] = []
    texts: list[str] = []
    logprobs: list[TokenLogprob] = []
    async for output in engine.generate(request):
        if first is None:
            if output.finish_reason is not None:
                return output
            first = output
        token_ids += output.token_ids
        texts.append(output.text)
        logprobs += output.logprobs
    if first is None:
        raise EngineError(f"the engine gave no output for {request.request_id}")
    return msgspec.structs.replace(
        output,
        token_ids=tuple(token_ids),
        text="".join(texts),
        logprobs=tuple(logprobs),
        cached_tokens=first.cached_tokens,
        pulled_tokens=first.pulled_tokens,
        pull_s=first.pull_s,
    )


def _first(group: BaseExceptionGroup[HpcserveError]) -> HpcserveError:
    found = group.exceptions[0]
    return _first(found) if isinstance(found, BaseExceptionGroup) else found
