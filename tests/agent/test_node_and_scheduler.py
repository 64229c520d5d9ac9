"""A node agent and a real Dask scheduler in one process: joining, announcing, and outliving the scheduler."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from hpcserve.agent import membership, node
from hpcserve.agent.node import NodeAgent, NodeSpec
from hpcserve.comm.channel import connect
from hpcserve.comm.protocol import Announcement, Command
from hpcserve.comm.tls import Identity, create_identity
from hpcserve.config import Config
from hpcserve.dispatch.agents import AgentLink
from hpcserve.engine.mock.engine import MockEngine
from hpcserve.state import StateDir
from hpcserve.types import EngineOutput, EngineRequest, RequestId, Role, Sampling, WorkerId, WorkerState
from tests.agent.head_in_process import head_on

pytestmark = [
    # distributed leaves sockets and event loops to the garbage collector when a scheduler is closed under a worker
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

WORKER = WorkerId("both-0-abcd")


@pytest.fixture
def config() -> Config:
    return Config.model_validate(
        {"engine": {"kind": "mock", "mock": {"speedup": 100}}, "cluster": {"kind": "local", "drain_timeout_s": 1}}
    )


@pytest.fixture
def state(tmp_path: Path, config: Config) -> StateDir:
    state = StateDir(tmp_path / "d")
    state.create()
    cert, key = create_identity()
    state.write_private(state.tls_cert, cert)
    state.write_private(state.tls_key, key)
    state.write_config(config)
    return state


@asynccontextmanager
async def agent_of(state: StateDir, config: Config, scratch: Path) -> AsyncIterator[asyncio.Task[None]]:
    spec = NodeSpec(worker=WORKER, pool="both", role=Role.BOTH, host="127.0.0.1", scratch=scratch)
    agent = NodeAgent(spec, config, state)
    running = asyncio.create_task(agent.run())
    try:
        yield running
    finally:
        agent.stop()
        await asyncio.wait((running,), timeout=20)


async def generate(state: StateDir, address: str, num_tokens: int) -> list[EngineOutput]:
    link = AgentLink(WORKER, await connect(address, Identity(state.tls_cert, state.tls_key), timeout_s=5))
    outputs: list[EngineOutput] = []
    request = EngineRequest(
        request_id=RequestId("r"), token_ids=list(range(100)), sampling=Sampling(max_tokens=num_tokens)
    )
    try:
        await link.generate(request, outputs.append)
    finally:
        await link.close()
    return outputs


async def test_the_engine_outlives_its_scheduler_and_is_known_to_the_next(
    state: StateDir, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership, "_RETRY_S", 0.05)
    async with head_on(state, config) as first:
        agent = agent_of(state, config, tmp_path)
        await agent.__aenter__()
        await first.until(WORKER, WorkerState.READY)
        info = first.roster.get(WORKER)
        assert info is not None
        assert info.address is not None
        assert info.engine is not None
        await generate(state, info.address, 5)
    try:
        without_head = await generate(state, info.address, 5)
        assert without_head[0].cached_tokens == 96, "the same engine, with its cache"
        async with head_on(state, config) as second:
            await second.until(WORKER, WorkerState.READY)
            again = second.roster.get(WORKER)
            assert again is not None
            assert (again.address, again.pid) == (info.address, info.pid)
            blocks = second.router.stats().indexed_blocks
            assert blocks >= 3, "the new head got a snapshot of the cache"
            await agent.__aexit__(None, None, None)
            await second.until(WORKER, WorkerState.STOPPED)
    finally:
        await agent.__aexit__(None, None, None)


async def test_an_agent_without_a_head_ends_by_itself_in_the_end(
    state: StateDir, config: Config, tmp_path: Path
) -> None:
    lonely = config.model_copy(update={"cluster": config.cluster.model_copy(update={"orphan_timeout_s": 0.5})})
    async with agent_of(state, lonely, tmp_path) as running:
        await asyncio.wait_for(running, 20)


async def test_the_head_can_tell_an_agent_to_stop(state: StateDir, config: Config, tmp_path: Path) -> None:
    async with head_on(state, config) as head, agent_of(state, config, tmp_path) as running:
        await head.until(WORKER, WorkerState.READY)
        head.plugin.command(WORKER, Command(op="stop"))
        await asyncio.wait_for(running, 20)
        await head.until(WORKER, WorkerState.STOPPED)


async def test_an_idle_agent_gives_signs_of_life_and_one_that_was_given_up_is_told_to_end(
    state: StateDir, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "_SIGN_OF_LIFE_S", 0.3)
    heard: asyncio.Queue[Announcement] = asyncio.Queue()
    async with head_on(state, config) as head, agent_of(state, config, tmp_path) as running:
        await head.until(WORKER, WorkerState.READY)
        hear = head.roster.hear

        def listen(announcement: Announcement, address: str) -> bool:
            heard.put_nowait(announcement)
            return hear(announcement, address)

        monkeypatch.setattr(head.roster, "hear", listen)
        async with asyncio.timeout(10):
            while await heard.get() != Announcement(worker=WORKER):  # nothing new, but there
                pass
        info = head.roster.get(WORKER)
        assert info is not None
        head.roster.end(WORKER, WorkerState.FAILED, "given up by mistake")
        head.plugin._hear(info.worker, msgspec.msgpack.encode(Announcement(worker=WORKER, info=info)))
        await asyncio.wait_for(running, 20)


async def test_what_a_worker_has_done_is_known_when_it_is_over_however_long_its_engine_takes_to_stop(
    state: StateDir, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = MockEngine.stop

    async def stop_slowly(engine: MockEngine) -> None:
        await stop(engine)
        await asyncio.sleep(3 * node._LOAD_INTERVAL_S)

    monkeypatch.setattr(MockEngine, "stop", stop_slowly)
    async with head_on(state, config) as head, agent_of(state, config, tmp_path) as running:
        await head.until(WORKER, WorkerState.READY)
        info = head.roster.get(WORKER)
        assert info is not None
        assert info.address is not None
        await generate(state, info.address, 5)
        head.plugin.command(WORKER, Command(op="stop"))
        await asyncio.wait_for(running, 20)
        await head.until(WORKER, WorkerState.STOPPED)
        done = head.roster.last_load(WORKER)
        assert done is not None
        assert done.generated_tokens_total >= 5


async def test_an_engine_that_cannot_start_is_announced_with_its_reason(
    state: StateDir, config: Config, tmp_path: Path
) -> None:
    broken = config.model_copy(update={"model": config.model.model_copy(update={"path": tmp_path / "nothing"})})
    async with head_on(state, broken) as head, agent_of(state, broken, tmp_path) as running:
        await head.until(WORKER, WorkerState.FAILED)
        info = head.roster.get(WORKER)
        assert info is not None
        assert "nothing" in info.detail
        assert running.done() or await asyncio.wait((running,), timeout=10)
        assert running.exception() is not None
