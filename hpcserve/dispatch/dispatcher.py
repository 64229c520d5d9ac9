"""THE request path: assign, prefill, decode, stream; and again elsewhere, with the tokens so far, if a worker is lost.

One `run` is one sequence. Its outputs reach the caller by plain calls, so that a token costs no task switch.
"""

from __future__ import annotations

import asyncio
import logging
import time

import msgspec

from hpcserve.config.models import Config
from hpcserve.dispatch.agents import AgentPool, OnOutput
from hpcserve.dispatch.head import HeadLink
from hpcserve.dispatch.progress import Progress, failure
from hpcserve.dispatch.spans import traced_assignment
from hpcserve.errors import EngineError, Overloaded, Unavailable, WorkerLeaving, WorkerLost
from hpcserve.kv.hashing import hash_blocks
from hpcserve.observability.metrics import DispatchCounts
from hpcserve.observability.tracing import Tracer
from hpcserve.types import (
    Assignment,
    BlockHash,
    Caller,
    EngineOutput,
    EngineRequest,
    KvHandle,
    Phase,
    RequestId,
    RouteRequest,
    Status,
    WorkerId,
)

log = logging.getLogger(__name__)

_RETRY_ASSIGN_S = 0.25
_ASSIGN_MARGIN_S = 10.0  # beyond what the head lets requests wait
_BATCH_WAIT_SHARE = 0.5  # of what a request may take: then it is asked for again, and none has failed
_SOURCE_TIMEOUT_S = 2.0  # for a handle to what should be cached: computing the prefix is better than waiting longer


class Dispatcher:
    """Runs sequences on the deployment. Owned by a frontend process; `HeadLink.run` has to run beside it."""

    def __init__(
        self,
        config: Config,
        head: HeadLink,
        agents: AgentPool,
        counts: DispatchCounts | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._config = config
        self._tracer = tracer
        self._agents = agents
        self._head = head
        head.on_status = self._on_status
        self._unknown = unknown_status(config)
        self.counts = counts or DispatchCounts()

    def status(self) -> Status:
        """Return the newest status that the head told; before the first, that of a deployment that starts."""
        return self._head.status or self._unknown

    async def run(self, request: EngineRequest, on_output: OnOutput, caller: Caller | None = None) -> None:
        """Run one sequence of `caller` to its end; `on_output` is called for every delta.

        It may wait for a worker. Cancelling aborts it. Raises `Unavailable` if no worker can take it (`Overloaded`: too
        many wait), `RateLimited` if too many of its tenant wait, `EngineError` if the engine refused it, or if it was
        lost on `frontend.max_attempts` workers.
        """
        progress = self._begin(request, on_output, caller or Caller())
        try:
            while not progress.finished:
                remaining = progress.remaining()
                if remaining.sampling.max_tokens <= 0:
                    on_output(EngineOutput(request_id=request.request_id, finish_reason="length"))
                    return
                await self._try(remaining, progress)
        finally:
            progress.drop_kv()

    def _begin(self, request: EngineRequest, on_output: OnOutput, caller: Caller) -> Progress:
        name = request.request_id
        return Progress(
            request,
            on_output,
            lambda: self._head.prefilled(name),
            caller,
            lambda source: self._agents.taken(source, name),
            self.counts,
        )

    async def _try(self, request: EngineRequest, progress: Progress) -> None:
        """Run what remains of a sequence on one worker. If that is lost, or leaves, it is noted."""
        try:
            assignment = await self._assign(request, progress)
            await self._execute(request, assignment, progress)
        except WorkerLost as err:
            self._note_loss(assignment.decode, progress, err)
        finally:
            num_generated = len(progress.token_ids) if progress.finished else None
            self._head.release(request.request_id, num_generated)  # also what still waits

    async def _execute(self, request: EngineRequest, assignment: Assignment, progress: Progress) -> None:
        request = msgspec.structs.replace(request, reused_tokens=assignment.reused_tokens)
        if progress.kv is not None:  # of a worker that leaves: all that there is to compute
            self._head.prefilled(request.request_id)
            await self._decode(msgspec.structs.replace(request, kv=progress.kv), assignment.decode, progress)
            return
        if assignment.source is not None:
            request = await self._with_prefix_from(assignment.source, assignment.source_tokens, request)
        if assignment.prefill is not None:
            handle = await self._prefill(request, assignment.prefill)
            reused = 0 if handle else assignment.reused_tokens  # what is worth keeping is kept where it was computed
            request = msgspec.structs.replace(request, kv=handle, reused_tokens=reused)
        await self._decode(request, assignment.decode, progress)

    async def _decode(self, request: EngineRequest, worker: WorkerId, progress: Progress) -> None:
        decode = await self._agents.link(worker, self._address(worker))
        progress.is_prefilling = True
        await decode.generate(request, progress.take)

    async def _with_prefix_from(self, source: WorkerId, num_tokens: int, request: EngineRequest) -> EngineRequest:
        """Return the request with a handle to its warm prefix; without one if that cannot be had after all."""
        prefix = msgspec.structs.replace(
            request,
            request_id=RequestId(f"{request.request_id}-source"),
            token_ids=request.token_ids[: num_tokens + 1],  # one to compute: else an engine computes a whole block anew
            num_resumed=0,
            reused_tokens=0,
            moves_away=True,
            priority=request.priority - 1,  # a step of the source's; another worker waits for it with its hands free
        )
        try:
            async with asyncio.timeout(_SOURCE_TIMEOUT_S):
                handle = await self._handle_for(prefix, source)
        except (WorkerLost, EngineError, TimeoutError) as err:
            why = str(err) or f"{source} gave no handle within {_SOURCE_TIMEOUT_S:g} s"
            log.warning("%s: its prefix is computed, not pulled: %s", request.request_id, why)
            self.counts.pulls_lost += 1
            return request
        self.counts.prefixes_pulled += 1
        return msgspec.structs.replace(request, kv=handle)

    async def _prefill(self, request: EngineRequest, worker: WorkerId) -> KvHandle | None:
        """Compute the prompt elsewhere. None if that worker is lost: the decode worker computes it then."""
        prompt = msgspec.structs.replace(request, request_id=RequestId(f"{request.request_id}-prefill"))
        try:
            handle = await self._handle_for(prompt, worker)
        except WorkerLost as err:
            log.warning("%s: prefill lost, computing on the decode worker: %s", request.request_id, err.message)
            self.counts.prefills_lost += 1
            return None
        self.counts.remote_prefills += 1
        self._head.prefilled(request.request_id)
        return handle

    async def _handle_for(self, prompt: EngineRequest, worker: WorkerId) -> KvHandle | None:
        """Have a prompt computed (at once, if it is cached there) and return the handle to its KV."""
        outputs: list[EngineOutput] = []
        link = await self._agents.link(worker, self._address(worker))
        await link.generate(msgspec.structs.replace(prompt, prefill_only=True), outputs.append)
        last = outputs[-1]
        if last.error is not None:
            raise failure(last.error, is_refusal=last.is_refusal)
        if last.finish_reason == "abort":
            raise WorkerLost(f"{worker} aborted the prefill")
        return last.kv

    async def _assign(self, request: EngineRequest, progress: Progress) -> Assignment:
        """Ask the head; without any worker, one that was under way asks again and a new one is refused at once."""
        route = RouteRequest(
            request_id=request.request_id,
            block_hashes=self._hashes(request),
            num_tokens=len(request.token_ids),
            max_tokens=request.sampling.max_tokens,
            priority=request.priority,
            exclude=tuple(progress.lost_on),
            caller=progress.caller,
        )
        deadline = time.monotonic() + self._config.frontend.reassign_timeout_s
        while True:
            try:
                return await self._wait_for_worker(route, request.traceparent)
            except Unavailable as err:
                if not progress.lost_on or time.monotonic() > deadline:
                    self.counts.overloaded += isinstance(err, Overloaded)
                    raise
            await asyncio.sleep(_RETRY_ASSIGN_S)

    async def _wait_for_worker(self, route: RouteRequest, traceparent: str | None) -> Assignment:
        asked_at = time.perf_counter()
        is_online = route.priority < self._config.batches.priority
        timeout_s = self._config.router.queue.max_wait_s + _ASSIGN_MARGIN_S
        if not is_online:  # waiting is what those of batches are there for
            timeout_s = self._config.frontend.request_timeout_s * _BATCH_WAIT_SHARE
        answer = self._head.assign(route, timeout_s=timeout_s)
        if self._tracer is not None and traceparent is not None:
            answer = traced_assignment(self._tracer, traceparent, route, answer)
        assignment = await answer
        if is_online:
            self.counts.queue.observe(time.perf_counter() - asked_at)
        return assignment

    def _hashes(self, request: EngineRequest) -> list[BlockHash]:
        return hash_blocks(request.token_ids, self._config.engine.block_size, request.cache_salt)

    def _note_loss(self, worker: WorkerId, progress: Progress, err: WorkerLost) -> None:
        if worker not in progress.lost_on:
            progress.lost_on.append(worker)
        self.counts.reassigned += 1
        request_id = progress.request.request_id
        if isinstance(err, WorkerLeaving):
            log.info("%s: %s leaves after %d tokens; moving it", request_id, worker, len(progress.token_ids))
            return
        progress.drop_kv()
        progress.num_lost += 1
        log.warning("%s: %s after %d tokens; moving it", request_id, err.message, len(progress.token_ids))
        if progress.num_lost >= self._config.frontend.max_attempts:
            raise EngineError(f"the request was lost on {progress.num_lost} workers; last: {err.message}") from err

    def _address(self, worker: WorkerId) -> str:
        for info in self.status().workers:
            if info.worker == worker and info.address is not None:
                return info.address
        raise WorkerLost(f"{worker} is not known any more")

    def _on_status(self, status: Status) -> None:
        """Drop connections to workers that are over or silent: a frozen one would never close them itself."""
        alive = {info.worker for info in status.workers if not info.state.is_final and not info.is_silent}
        for worker in self._agents.known():
            if worker not in alive:
                self._agents.drop(worker)


def unknown_status(config: Config) -> Status:
    """Return what is shown before the head has told anything: a deployment that starts."""
    return Status(
        name=config.name,
        phase=Phase.STARTING,
        model=config.served_name,
        mode=config.pools.mode,
        policy=config.router.policy,
        cluster=config.cluster.kind,
        detail="the scheduler is not reachable yet",
    )
