"""A deployment in the test's own process: a real Dask scheduler, the head's parts beside it, agents, mock engines."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hpcserve.agent import membership, node
from hpcserve.agent.node import NodeAgent, NodeSpec
from hpcserve.batch.lines import Item
from hpcserve.batch.unit import Reply
from hpcserve.comm.tls import Identity, create_identity, security
from hpcserve.config import Config
from hpcserve.engine.factory import make_engine
from hpcserve.engine.protocol import AsyncEngine, EngineContext
from hpcserve.errors import EngineError
from hpcserve.head.plugin import RoutingPlugin
from hpcserve.head.roster import Roster
from hpcserve.head.service import HeadService
from hpcserve.head.units import UnitPlacer
from hpcserve.records import HeadRecord, Proc
from hpcserve.router.router import Router
from hpcserve.state import StateDir
from hpcserve.types import (
    EngineInfo,
    EngineOutput,
    EngineRequest,
    KvEvent,
    LoadReport,
    Phase,
    RequestId,
    Role,
    Status,
    WorkerId,
    WorkerState,
)

POISON, BROKEN = 111, 112  # first tokens of prompts: the engine dies of it; it fails on it


@dataclass
class Seen:
    """What all engines were asked, and what holds them up."""

    started: list[tuple[WorkerId, EngineRequest]] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    may_run: asyncio.Event = field(default_factory=asyncio.Event)

    def by_worker(self) -> dict[WorkerId, int]:
        return {worker: [each for each, _ in self.started].count(worker) for worker, _ in self.started}


class WatchedEngine:
    """A mock engine that tells what it is asked, and that prompts can hurt."""

    def __init__(self, engine: AsyncEngine, worker: WorkerId, seen: Seen) -> None:
        self._engine, self._worker, self._seen, self._is_dead = engine, worker, seen, False

    async def start(self, on_kv_events: Callable[[list[KvEvent]], None]) -> EngineInfo:
        return await self._engine.start(on_kv_events)

    async def generate(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        if request.request_id != "warm-up":
            self._seen.started.append((self._worker, request))
            try:
                await self._seen.may_run.wait()
            except asyncio.CancelledError:
                self._seen.aborted.append(request.request_id)
                raise
        self._is_dead = self._is_dead or request.token_ids[0] == POISON
        if self._is_dead:
            raise EngineError("the engine died of it")
        if request.token_ids[0] == BROKEN:
            yield EngineOutput(request_id=request.request_id, finish_reason="error", error="does not work")
            return
        async for output in self._engine.generate(request):
            yield output
        self._seen.ended.append(request.request_id)

    async def abort(self, request_id: RequestId) -> None:
        await self._engine.abort(request_id)

    def load(self) -> LoadReport:
        return self._engine.load()

    async def stop(self) -> None:
        await self._engine.stop()


class Deployment:
    """The head's parts, and the agents."""

    def __init__(self, config: Config, state: StateDir) -> None:
        self.config, self.state, self.seen = config, state, Seen()
        self.seen.may_run.set()
        self.router = Router(config.router, config.engine.block_size)
        self.roster = Roster(self.router, self._on_change)
        self.units = UnitPlacer(self.router, self.roster, config.engine.block_size)
        self.plugin = RoutingPlugin(self.roster, self.units)
        self.service = HeadService(
            self.router,
            Identity(state.tls_cert, state.tls_key),
            max_wait_s=5,
            make_status=self.status,
            on_frontend=lambda *_: None,
            on_stop=lambda _: None,
        )
        self.scheduler: Any = None
        self.agents: dict[WorkerId, tuple[NodeAgent, asyncio.Task[None]]] = {}
        self._changed = asyncio.Event()

    def status(self) -> Status:
        has_ready = any(each.state is WorkerState.READY for each in self.roster.workers())
        return Status(
            name=self.config.name,
            phase=Phase.SERVING if has_ready else Phase.STARTING,
            model=self.config.served_name,
            mode=self.config.pools.mode,
            policy=self.config.router.policy,
            cluster="local",
            workers=self.roster.workers(),
        )

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self._changed.clear()
                asyncio.get_running_loop().call_later(0.02, self._changed.set)
                await self._changed.wait()

    async def add(self, name: str, role: Role = Role.BOTH) -> WorkerId:
        """Start an agent, and wait until it is READY."""
        worker = WorkerId(name)
        scratch = self.state.path / name
        scratch.mkdir()
        agent = NodeAgent(
            NodeSpec(worker=worker, pool=str(role), role=role, host="127.0.0.1", scratch=scratch),
            self.config,
            self.state,
        )
        self.agents[worker] = (agent, asyncio.create_task(agent.run(), name=f"agent {name}"))
        await self.until(lambda: worker in {each.worker for each in self.roster.ready().values()})
        return worker

    def drop(self, worker: WorkerId) -> None:
        """Have the scheduler lose a worker, as one that is killed; its agent comes back by itself."""
        address = self.roster.dask_address(worker)
        self.scheduler.stream_comms[address].abort()

    async def close(self) -> None:
        for agent, _ in self.agents.values():
            agent.stop()
        await asyncio.gather(*(running for _, running in self.agents.values()), return_exceptions=True)

    def _on_change(self) -> None:
        self._changed.set()
        self.service.notify()


@asynccontextmanager
async def deployed(
    directory: Path, config: Config, roles: Sequence[Role], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Deployment]:
    from dask import config as dask_config
    from distributed import Scheduler

    from hpcserve.serve.dask_config import DASK_CONFIG

    state = StateDir(directory / "d")
    state.create()
    for path, data in zip((state.tls_cert, state.tls_key), create_identity(), strict=True):
        state.write_private(path, data)
    state.write_config(config)
    deployment = Deployment(config, state)

    def watched(config: Config, context: EngineContext) -> AsyncEngine:
        return WatchedEngine(make_engine(config, context), context.worker, deployment.seen)

    monkeypatch.setattr(node, "make_engine", watched)
    monkeypatch.setattr(membership, "_RETRY_S", 0.02)
    async with AsyncExitStack() as stack:
        stack.enter_context(dask_config.set(DASK_CONFIG))
        scheduler: Any = Scheduler(
            protocol="tls",
            host="127.0.0.1",
            port=0,
            security=security(state.tls_cert, state.tls_key),
            dashboard=False,
            dashboard_address="127.0.0.1:0",
        )
        deployment.scheduler = await stack.enter_async_context(scheduler)
        scheduler.add_plugin(deployment.plugin)
        await deployment.plugin.start(scheduler)
        stack.push_async_callback(deployment.service.close)
        address = await deployment.service.start("127.0.0.1")
        publishing = asyncio.create_task(deployment.service.publish_loop())
        stack.callback(publishing.cancel)
        state.write_head(HeadRecord(proc=Proc.of(os.getpid()), scheduler=scheduler.address, address=address))
        stack.push_async_callback(deployment.close)
        for number, role in enumerate(roles):
            await deployment.add(f"{role}-{number}-aaaa", role)
        yield deployment


def completion(number: int, prompt: list[int], **fields: Any) -> Item:
    body = {"model": "mock", "prompt": prompt, "max_tokens": 4, "temperature": 0, **fields}
    return Item(number, f"c{number}", "/v1/completions", body)


@dataclass
class Taken:
    """Answers, as a run takes them."""

    replies: dict[str, Reply] = field(default_factory=dict)

    async def take(self, item: Item, reply: Reply) -> None:
        assert item.custom_id not in self.replies, "each once"
        self.replies[item.custom_id] = reply

    def statuses(self) -> dict[str, int | None]:
        return {name: reply.status for name, reply in self.replies.items()}
