"""A `Backend` of real parts in one process: the router, fed by the events of two mock engines that take no time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from hpcserve.config.models import Config
from hpcserve.engine.mock.engine import MockEngine
from hpcserve.engine.protocol import EngineContext
from hpcserve.kv.hashing import hash_blocks
from hpcserve.router.router import Router
from hpcserve.types import (
    Assignment,
    Caller,
    EngineInfo,
    EngineOutput,
    EngineRequest,
    KvEvent,
    KvEventBatch,
    Phase,
    Role,
    RouteRequest,
    Status,
    WorkerId,
    WorkerInfo,
    WorkerState,
)

WORKERS = (WorkerId("both-0-t"), WorkerId("both-1-t"))


class RoutedMocks:
    def __init__(self, scratch: Path) -> None:
        self.config = Config.model_validate({"engine": {"kind": "mock", "mock": {"speedup": float("inf")}}})
        self.router = Router(self.config.router, self.config.engine.block_size)
        self.engines = {worker: MockEngine(self.config, self._context(worker, scratch)) for worker in WORKERS}
        self.infos: list[WorkerInfo] = []
        self.routes: list[RouteRequest] = []
        self.requests: list[EngineRequest] = []
        self.assignments: list[Assignment] = []

    async def start(self) -> None:
        for worker, engine in self.engines.items():
            told = await engine.start(self._publisher(worker))
            self.infos.append(self._info(worker, told))
            self.router.update_worker(self.infos[-1])

    async def stop(self) -> None:
        for engine in self.engines.values():
            await engine.stop()

    def status(self) -> Status:
        return Status(
            name="t",
            phase=Phase.SERVING,
            model="mock",
            mode="aggregated",
            policy="kv",
            cluster="local",
            workers=tuple(self.infos),
        )

    async def run(self, request: EngineRequest, on_output: Callable[[EngineOutput], None], caller: Caller) -> None:
        hashes = hash_blocks(request.token_ids, self.config.engine.block_size, request.cache_salt)
        route = RouteRequest(
            request_id=request.request_id,
            block_hashes=hashes,
            num_tokens=len(request.token_ids),
            max_tokens=request.sampling.max_tokens,
            caller=caller,
        )
        assignment = self.router.assign(route, time.time())
        self.routes.append(route)
        self.requests.append(request)
        self.assignments.append(assignment)
        try:
            async for output in self.engines[assignment.decode].generate(request):
                on_output(output)
        finally:
            self.router.release(request.request_id)

    def _publisher(self, worker: WorkerId) -> Callable[[list[KvEvent]], None]:
        seq = 0

        def publish(events: list[KvEvent]) -> None:
            nonlocal seq
            seq += 1
            assert self.router.apply(KvEventBatch(worker=worker, seq=seq, events=events))

        return publish

    @staticmethod
    def _context(worker: WorkerId, scratch: Path) -> EngineContext:
        return EngineContext(worker=worker, role=Role.BOTH, host="127.0.0.1", moves_kv=False, scratch=scratch)

    @staticmethod
    def _info(worker: WorkerId, engine: EngineInfo) -> WorkerInfo:
        return WorkerInfo(worker=worker, pool="both", role=Role.BOTH, state=WorkerState.READY, engine=engine)
