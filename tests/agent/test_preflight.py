"""Workers are READY only if KV from other workers reaches them, intact and fast enough."""

from __future__ import annotations

import asyncio
import ctypes
import importlib.util
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from random import Random

import pytest

from hpcserve.agent import preflight, scratch_end
from hpcserve.agent.node import NodeAgent, NodeSpec
from hpcserve.agent.preflight import must_wait, one_a_node
from hpcserve.comm.tls import create_identity
from hpcserve.config import Config
from hpcserve.errors import KVError
from hpcserve.kv.transport import Abilities, Copy, Finished, Region, TransportKind
from hpcserve.state import StateDir
from hpcserve.types import Role, WorkerId, WorkerInfo, WorkerState
from tests.agent.head_in_process import head_on

pytestmark = [
    # distributed leaves sockets and event loops to the garbage collector when a scheduler is closed under a worker
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

FIRST, SECOND, THIRD = (WorkerId(f"both-{number}-aa") for number in range(3))


class NearbyTransport:
    """Copies within this process; can be told to spoil a byte, to take its time, or to fail."""

    kind: TransportKind = "nixl"
    abilities = Abilities(path="a copy nearby")
    spoils = False
    takes_s = 0.0
    fails = ""
    num_open = 0

    def __init__(self) -> None:
        type(self).num_open += 1
        self._finished: list[Finished] = []

    def register(self, regions: Sequence[Region]) -> None:
        self._regions = regions

    def describe(self) -> bytes:
        return b"%d" % self._regions[0].address

    def pull(self, peer: bytes, copies: Sequence[Copy], *, note: bytes = b"") -> int:
        for copy in copies:
            here = self._regions[copy.local_region].address + copy.local_offset
            ctypes.memmove(here, int(peer) + copy.remote_offset, copy.size)
            if self.spoils:
                ctypes.memset(here + copy.size // 2, 0, 4)
        time.sleep(self.takes_s)
        self._finished.append(Finished(1, self.fails or None))
        return 1

    def cancel(self, pull: int) -> None: ...

    def notify(self, peer: bytes, note: bytes) -> None: ...

    def poll(self) -> tuple[list[Finished], list[bytes]]:
        finished, self._finished = self._finished, []
        return finished, []

    def close(self) -> None:
        type(self).num_open -= 1


@pytest.fixture
def nearby(monkeypatch: pytest.MonkeyPatch) -> type[NearbyTransport]:
    class Transport(NearbyTransport):
        pass

    monkeypatch.setattr(scratch_end, "open_transport", lambda kind, timeout_s: Transport())
    monkeypatch.setattr(preflight, "_LOOK_S", 0.02)
    return Transport


@pytest.fixture
def config() -> Config:
    return Config.model_validate(
        {
            "engine": {"kind": "mock", "mock": {"speedup": 100}},
            "cluster": {"kind": "local", "drain_timeout_s": 1},
            "kv": {"preflight": True, "preflight_min_gb_per_s": 0.05},
        }
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
async def agents(state: StateDir, config: Config, *workers: WorkerId) -> AsyncIterator[list[asyncio.Task[None]]]:
    async with AsyncExitStack() as stack:
        running = []
        for worker in workers:
            scratch = state.path / worker
            scratch.mkdir()
            spec = NodeSpec(worker=worker, pool="both", role=Role.BOTH, host="127.0.0.1", scratch=scratch)
            agent = NodeAgent(spec, config, state)
            running.append(asyncio.create_task(agent.run()))
            stack.push_async_callback(asyncio.wait, running[-1:], timeout=20)
            stack.callback(agent.stop)
        yield running


async def test_the_first_worker_has_nobody_to_pull_from_and_the_next_checks_it(
    state: StateDir, config: Config, nearby: type[NearbyTransport]
) -> None:
    async with head_on(state, config) as head, agents(state, config, FIRST):
        await head.until(FIRST, WorkerState.READY)
        async with agents(state, config, SECOND):
            await head.until(SECOND, WorkerState.READY)
    assert nearby.num_open == 0


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ({"spoils": True}, "what arrived is not what was sent"),
        ({"takes_s": 0.5}, "GB/s, and kv.preflight_min_gb_per_s is 0.05"),
        ({"fails": "rank 3 was silent"}, "rank 3 was silent"),
    ],
)
async def test_a_worker_to_which_kv_comes_badly_is_refused_by_node_and_interface(
    state: StateDir,
    config: Config,
    nearby: type[NearbyTransport],
    monkeypatch: pytest.MonkeyPatch,
    fault: dict[str, object],
    complaint: str,
) -> None:
    monkeypatch.setenv("UCX_NET_DEVICES", "mlx5_7:1")
    async with head_on(state, config) as head, agents(state, config, FIRST):
        await head.until(FIRST, WorkerState.READY)
        for name, value in fault.items():
            setattr(nearby, name, value)
        async with agents(state, config, SECOND) as (running,):
            await head.until(SECOND, WorkerState.FAILED)
            info, first = head.roster.get(SECOND), head.roster.get(FIRST)
            assert info is not None
            assert first is not None
            for text in (complaint, FIRST, SECOND, f"on {first.host} to", f"on {info.host} over", "mlx5_7:1"):
                assert text in info.detail
            await asyncio.wait((running,), timeout=10)
            assert isinstance(running.exception(), KVError)
        assert first.state is WorkerState.READY
    assert nearby.num_open == 0


async def test_workers_that_come_up_together_check_against_the_one_that_goes_first(
    state: StateDir, config: Config, nearby: type[NearbyTransport]
) -> None:
    nearby.spoils = True
    async with head_on(state, config) as head, agents(state, config, FIRST, SECOND, THIRD) as running:
        await head.until(FIRST, WorkerState.READY)
        await head.until(SECOND, WorkerState.FAILED)
        await head.until(THIRD, WorkerState.FAILED)
        await asyncio.wait(running[1:], timeout=10)
        assert all(isinstance(task.exception(), KVError) for task in running[1:])


async def test_a_worker_that_reaches_no_other_is_refused(
    state: StateDir, config: Config, nearby: type[NearbyTransport], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def show(self: object, visitor: object) -> None:
        raise KVError("no memory left")

    async with head_on(state, config) as head, agents(state, config, FIRST):
        await head.until(FIRST, WorkerState.READY)
        monkeypatch.setattr(preflight.Exhibition, "show", show)
        async with agents(state, config, SECOND) as (running,):
            await head.until(SECOND, WorkerState.FAILED)
            info = head.roster.get(SECOND)
            assert info is not None
            assert "none of the READY workers can be reached" in info.detail
            await asyncio.wait((running,), timeout=10)
            assert running.exception() is not None


@pytest.mark.real
@pytest.mark.skipif(importlib.util.find_spec("nixl") is None, reason="no NIXL")
async def test_workers_pass_with_nixl(state: StateDir, config: Config) -> None:
    async with head_on(state, config) as head, agents(state, config, FIRST):
        await head.until(FIRST, WorkerState.READY)
        async with agents(state, config, SECOND):
            await head.until(SECOND, WorkerState.READY)


def _worker(name: str, host: str, state: WorkerState = WorkerState.READY) -> WorkerInfo:
    return WorkerInfo(
        worker=WorkerId(name), pool="both", role=Role.BOTH, state=state, host=host, address=f"tls://{name}:1"
    )


def test_one_worker_of_each_node_is_asked_and_those_elsewhere_first() -> None:
    own = _worker("own", "a", WorkerState.WARMING)
    workers = [own, *(_worker(f"{host}{number}", host) for host in "ab" for number in range(5))]
    workers.append(_worker("c0", "c", WorkerState.LOADING))
    for seed in range(20):
        assert [each.host for each in one_a_node(own, workers, Random(seed))] == ["b", "a"]
    many = [_worker(f"w{host}", str(host)) for host in range(50)]
    assert len(one_a_node(own, many, Random(1))) == 4


def test_the_lowest_of_those_that_come_up_goes_first() -> None:
    one, two = _worker("w1", "a", WorkerState.WARMING), _worker("w2", "a", WorkerState.WARMING)
    assert must_wait(two, [one, two])
    assert not must_wait(one, [one, two])
    assert not must_wait(two, [_worker("w1", "a", WorkerState.FAILED), two])
