"""Which prefixes a worker takes for hot, and how they get to the worker that comes after it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hpcserve.agent import hot_prefixes, prefix_moves
from hpcserve.agent.data_plane import DataPlane
from hpcserve.agent.hot_prefixes import HotPrefixes
from hpcserve.agent.prefix_moves import choose_successor, move_prefixes
from hpcserve.comm.tls import Identity, create_identity
from hpcserve.config import Config
from hpcserve.engine.mock.engine import MockEngine
from hpcserve.engine.protocol import EngineContext
from hpcserve.types import EngineOutput, EngineRequest, RequestId, Role, Sampling, WorkerId, WorkerInfo, WorkerState

BLOCK = 32


def asks(first: int, num_tokens: int, *, reused: int, name: str = "r", salt: str | None = None) -> EngineRequest:
    """A prompt that begins with `first`, of which `reused` tokens were asked for before."""
    return EngineRequest(
        request_id=RequestId(name),
        token_ids=list(range(first, first + num_tokens)),
        sampling=Sampling(max_tokens=1),
        reused_tokens=reused,
        cache_salt=salt,
    )


def test_what_is_asked_for_most_comes_first() -> None:
    hot = HotPrefixes()
    for first, times in ((1000, 1), (2000, 3), (3000, 2)):
        for _ in range(times):
            hot.note(asks(first, 100, reused=64))
    assert [prefix.token_ids[0] for prefix in hot.hottest(1 << 20)] == [2000, 3000, 1000]
    assert {len(prefix.token_ids) for prefix in hot.hottest(1 << 20)} == {65}, "one more, for the engine to compute"
    assert [prefix.token_ids[0] for prefix in hot.hottest(130)] == [2000, 3000]


def test_what_nobody_shares_and_what_moves_away_is_not_hot() -> None:
    hot = HotPrefixes()
    hot.note(asks(1000, 100, reused=0))
    assert not hot.hottest(1 << 20)


def test_the_beginning_of_a_hotter_prefix_is_not_moved_twice_but_tenants_are_kept_apart() -> None:
    hot = HotPrefixes()
    for _ in range(3):
        hot.note(asks(1000, 200, reused=128))
    hot.note(asks(1000, 200, reused=64))
    hot.note(asks(1000, 200, reused=64, salt="other"))
    assert [(len(prefix.token_ids), prefix.cache_salt) for prefix in hot.hottest(1 << 20)] == [
        (129, None),
        (65, "other"),
    ]


def test_memory_is_bounded_and_what_was_hot_long_ago_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hot_prefixes, "_MOST", 3)
    hot = HotPrefixes()
    for _ in range(4):
        hot.note(asks(1, 100, reused=64))
    for first in range(1000, 9000, 100):
        hot.note(asks(first, 100, reused=64))
        hot.note(asks(first, 100, reused=64))
    assert len(hot.hottest(1 << 20)) <= 3
    assert 1 not in {prefix.token_ids[0] for prefix in hot.hottest(1 << 20)}


def info_of(name: str, address: str | None, *, pool: str = "both", role: Role = Role.BOTH) -> WorkerInfo:
    return WorkerInfo(worker=WorkerId(name), pool=pool, role=role, state=WorkerState.READY, address=address)


def test_the_successor_is_the_newest_of_the_same_role() -> None:
    leaving = info_of("decode-0", "a", pool="decode", role=Role.DECODE)
    peers = [
        info_of("decode-1", "b", pool="decode", role=Role.DECODE),
        info_of("decode-2", "c", pool="decode", role=Role.DECODE),
        info_of("prefill-3", "d", pool="prefill", role=Role.PREFILL),
    ]
    assert choose_successor(leaving, peers) == peers[1]
    assert choose_successor(leaving, peers[2:]) is None


@pytest.fixture
def identity(tmp_path: Path) -> Identity:
    cert, key = create_identity()
    (tmp_path / "cert").write_bytes(cert)
    (tmp_path / "key").write_bytes(key)
    return Identity(tmp_path / "cert", tmp_path / "key")


@pytest.fixture
async def engines(tmp_path: Path) -> AsyncIterator[list[MockEngine]]:
    config = Config.model_validate({"engine": {"kind": "mock", "block_size": BLOCK, "mock": {"speedup": 100}}})
    engines = []
    for name in ("both-0", "both-1"):
        context = EngineContext(
            worker=WorkerId(name), role=Role.BOTH, host="127.0.0.1", moves_kv=True, scratch=tmp_path
        )
        engines.append(MockEngine(config, context))
        await engines[-1].start(lambda events: None)
    yield engines
    for engine in engines:
        await engine.stop()


async def ask(engine: MockEngine, request: EngineRequest) -> EngineOutput:
    first, *_ = [output async for output in engine.generate(request)]
    return first


async def test_after_the_move_the_prefix_is_found_at_the_successor(
    engines: list[MockEngine], identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix_moves, "_SETTLE_S", 0.0)
    old, new = engines
    hot = HotPrefixes()
    for number in range(3):
        request = asks(100, 1000 + number, reused=30 * BLOCK, name=f"r{number}")
        hot.note(request)
        await ask(old, request)
    plane = DataPlane(new, identity)
    peer = info_of("both-1", await plane.start("127.0.0.1"))

    async def find_peers() -> list[WorkerInfo]:
        return [peer]

    try:
        moved = await move_prefixes(hot, old.run, info_of("both-0", "x"), find_peers, identity, time.time() + 5)
    finally:
        await plane.close()
    assert moved == 1
    assert new.load().pulled_tokens_total >= 30 * BLOCK
    assert (await ask(new, asks(100, 1200, reused=0))).cached_tokens == 30 * BLOCK


async def test_a_successor_that_is_gone_costs_nothing_but_a_warning(
    engines: list[MockEngine], identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix_moves, "_SETTLE_S", 0.0)
    hot = HotPrefixes()
    hot.note(asks(100, 1000, reused=30 * BLOCK))
    plane = DataPlane(engines[1], identity)
    peer = info_of("both-1", await plane.start("127.0.0.1"))
    await plane.close()

    async def find_peers() -> list[WorkerInfo]:
        return [peer]

    assert await move_prefixes(hot, engines[0].run, info_of("both-0", "x"), find_peers, identity, time.time() + 5) == 0
