"""A head and agents in one process, joined by real channels; the engines do what the test says."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from hpcserve.agent.data_plane import DataPlane
from hpcserve.comm.protocol import Announcement, FrontendInfo
from hpcserve.comm.tls import Identity, create_identity
from hpcserve.config import Config
from hpcserve.dispatch import Dispatcher
from hpcserve.dispatch.agents import AgentPool
from hpcserve.dispatch.head import HeadLink
from hpcserve.engine.protocol import AsyncEngine
from hpcserve.head.roster import Roster
from hpcserve.head.service import HeadService
from hpcserve.records import HeadRecord, Proc
from hpcserve.router.router import Router
from hpcserve.state import StateDir
from hpcserve.types import (
    EngineInfo,
    EngineOutput,
    EngineRequest,
    KvEvent,
    KvHandle,
    LoadReport,
    Phase,
    RequestId,
    Role,
    Sampling,
    Status,
    WorkerId,
    WorkerInfo,
    WorkerState,
)


class ScriptedEngine:
    """Emits token n at position n. `gate` holds it before the positions named; `seen` is what it was asked."""

    def __init__(self, worker: WorkerId) -> None:
        self.worker = worker
        self.seen: list[EngineRequest] = []
        self.gates: dict[int, asyncio.Event] = {}
        self.reached = asyncio.Event()
        self.closed: list[RequestId] = []
        self.closing = asyncio.Event()
        self.is_stopping = False
        self.refusal: str | None = None  # why requests make no sense to it

    def hold_at(self, position: int) -> asyncio.Event:
        return self.gates.setdefault(position, asyncio.Event())

    async def start(self, on_kv_events: Callable[[list[KvEvent]], None]) -> EngineInfo:
        raise AssertionError("not started in these tests")

    async def generate(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        self.seen.append(request)
        if self.refusal is not None:
            why = self.refusal
            yield EngineOutput(request_id=request.request_id, finish_reason="error", error=why, is_refusal=True)
            return
        try:
            if request.prefill_only:
                handle = KvHandle(
                    transport="t", source=self.worker, num_tokens=len(request.token_ids), params={"from": self.worker}
                )
                if gate := self.gates.get(0):
                    self.reached.set()
                    await gate.wait()
                yield EngineOutput(request_id=request.request_id, token_ids=(0,), finish_reason="length", kv=handle)
                return
            first = len(request.token_ids)
            last = first + request.sampling.max_tokens - 1
            for position in range(first, last + 1):
                if gate := self.gates.get(position):
                    self.reached.set()
                    await gate.wait()
                if self.is_stopping:
                    yield EngineOutput(request_id=request.request_id, finish_reason="abort")
                    return
                yield EngineOutput(
                    request_id=request.request_id,
                    token_ids=(position,),
                    text=f"{position} ",
                    cached_tokens=7 if position == first else None,
                    finish_reason="length" if position == last else None,
                )
        finally:
            self.closed.append(request.request_id)
            self.closing.set()

    async def abort(self, request_id: RequestId) -> None: ...

    def load(self) -> LoadReport:
        return LoadReport()

    async def stop(self) -> None: ...


class Cell:
    """One deployment in one process."""

    def __init__(self, config: Config, state: StateDir) -> None:
        self.config = config
        self.state = state
        self.identity = Identity(state.tls_cert, state.tls_key)
        self.router = Router(config.router, config.engine.block_size)
        self.roster = Roster(self.router, lambda: self.service.notify())
        self.service = HeadService(
            self.router,
            self.identity,
            max_wait_s=config.router.queue.max_wait_s,
            make_status=self.status,
            on_frontend=lambda info, is_there: None,
            on_stop=lambda request: None,
        )
        self.engines: dict[WorkerId, ScriptedEngine] = {}
        self.planes: dict[WorkerId, DataPlane] = {}
        self.dispatcher: Dispatcher
        self._heard = asyncio.Event()
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        stack = self._stack
        stack.push_async_callback(self.service.close)
        address = await self.service.start("127.0.0.1")
        publishing = asyncio.create_task(self.service.publish_loop())
        stack.callback(publishing.cancel)
        self.state.write_head(HeadRecord(proc=Proc.of(os.getpid()), scheduler="none", address=address))
        agents = AgentPool(self.identity)
        head = HeadLink(self.state)
        head.me = FrontendInfo(pid=os.getpid(), endpoint="http://test/v1")
        self.dispatcher = Dispatcher(self.config, head, agents)
        told = head.on_status

        def tell(status: Status) -> None:
            assert told is not None
            told(status)
            self._heard.set()

        head.on_status = tell
        linked = asyncio.create_task(head.run())
        stack.push_async_callback(agents.close)
        stack.callback(linked.cancel)
        await asyncio.wait_for(self._heard.wait(), 5)

    async def close(self) -> None:
        for plane in self.planes.values():
            await plane.close()
        await self._stack.aclose()

    async def add(self, pool: str) -> ScriptedEngine:
        engine = ScriptedEngine(WorkerId(f"{pool}-{len(self.engines)}-t"))
        self.engines[engine.worker] = engine
        await self.serve(engine.worker, pool, engine)
        return engine

    async def serve(self, worker: WorkerId, pool: str, engine: AsyncEngine) -> None:
        """Have an engine, which is up, take requests."""
        plane = self.planes[worker] = DataPlane(engine, self.identity)
        info = WorkerInfo(
            worker=worker,
            pool=pool,
            role=Role(pool),
            state=WorkerState.READY,
            address=await plane.start("127.0.0.1"),
            engine=EngineInfo(engine="s", model="m", block_size=32, num_kv_blocks=100, max_model_len=10_000),
        )
        self.roster.hear(Announcement(worker=worker, info=info), f"dask-{worker}")
        await self.told(worker)

    async def told(self, worker: WorkerId, *, present: bool = True) -> None:
        """Wait until the dispatcher knows a worker, or knows that it is over."""
        while True:
            known = {info.worker for info in self.dispatcher.status().workers if not info.state.is_final}
            if (worker in known) is present:
                return
            self._heard.clear()
            await asyncio.wait_for(self._heard.wait(), 5)

    def status(self) -> Status:
        return Status(
            name="t",
            phase=Phase.SERVING,
            model="m",
            mode="aggregated",
            policy="kv",
            cluster="local",
            workers=self.roster.workers(),
        )


def request(num_prompt: int = 100, max_tokens: int = 10, name: str = "r1") -> EngineRequest:
    return EngineRequest(
        request_id=RequestId(name), token_ids=list(range(num_prompt)), sampling=Sampling(max_tokens=max_tokens)
    )


@pytest.fixture
def queue() -> dict[str, object]:
    """`router.queue`, for tests to choose."""
    return {}


@pytest.fixture
async def cell(tmp_path: Path, queue: dict[str, object]) -> AsyncIterator[Cell]:
    config = Config.model_validate(
        {"engine": {"kind": "mock"}, "frontend": {"reassign_timeout_s": 5}, "router": {"queue": queue}}
    )
    state = StateDir(tmp_path / "t")
    state.create()
    cert, key = create_identity()
    state.write_private(state.tls_cert, cert)
    state.write_private(state.tls_key, key)
    cell = Cell(config, state)
    await cell.start()
    try:
        yield cell
    finally:
        await cell.close()
