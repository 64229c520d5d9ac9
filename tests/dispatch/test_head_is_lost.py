"""A frontend's link while there is no head: requests wait for the next one, and are not forgotten by it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hpcserve.comm.protocol import FrontendInfo
from hpcserve.comm.tls import Identity, create_identity
from hpcserve.config.models import RouterConfig
from hpcserve.dispatch.head import HeadLink
from hpcserve.errors import Overloaded, Unavailable
from hpcserve.head.service import HeadService
from hpcserve.records import HeadRecord, Proc
from hpcserve.router.router import Router
from hpcserve.state import StateDir
from hpcserve.types import (
    EngineInfo,
    Phase,
    RequestId,
    Role,
    RouteRequest,
    Status,
    WorkerId,
    WorkerInfo,
    WorkerState,
)

WORKER = WorkerId("both-0-a1")
ENGINE = EngineInfo(engine="s", model="m", block_size=32, num_kv_blocks=100, max_model_len=10_000)
STATUS = Status(name="t", phase=Phase.SERVING, model="m", mode="aggregated", policy="kv", cluster="local")


class Head:
    """One head's channel and router."""

    def __init__(self, state: StateDir, *, is_ours: bool = True) -> None:
        self.router = Router(RouterConfig(policy="round_robin"), 32)  # which lets nobody wait
        info = WorkerInfo(worker=WORKER, pool="both", role=Role.BOTH, state=WorkerState.READY, engine=ENGINE)
        self.router.update_worker(info)
        self.service = HeadService(
            self.router,
            Identity(state.tls_cert, state.tls_key),
            max_wait_s=60,
            make_status=lambda: STATUS,
            on_frontend=lambda info, is_there: None,
            on_stop=lambda request: None,
            is_ours=lambda info: is_ours,
        )


@asynccontextmanager
async def head_on(state: StateDir, *, is_ours: bool = True) -> AsyncIterator[Head]:
    head = Head(state, is_ours=is_ours)
    address = await head.service.start("127.0.0.1")
    state.write_head(HeadRecord(proc=Proc.of(os.getpid()), scheduler=address, address=address))
    try:
        yield head
    finally:
        await head.service.close()


@asynccontextmanager
async def linked(link: HeadLink) -> AsyncIterator[None]:
    link.me = FrontendInfo(pid=os.getpid(), endpoint="http://test/v1")
    running = asyncio.create_task(link.run())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    state = StateDir(tmp_path / "t")
    state.create()
    cert, key = create_identity()
    state.write_private(state.tls_cert, cert)
    state.write_private(state.tls_key, key)
    return state


def route(name: str) -> RouteRequest:
    return RouteRequest(request_id=RequestId(name), block_hashes=[], num_tokens=100, max_tokens=5)


async def until(link: HeadLink, *, is_lost: bool) -> None:
    async with asyncio.timeout(10):
        while (link.lost_for_s > 0) is not is_lost:
            await asyncio.sleep(0.01)


async def test_a_new_request_waits_for_the_next_head(state: StateDir) -> None:
    link = HeadLink(state, patience_s=30)
    async with linked(link):
        async with head_on(state):
            await until(link, is_lost=False)
        await until(link, is_lost=True)
        waiting = asyncio.create_task(link.assign(route("new"), timeout_s=5))
        while not link.num_waiting:
            await asyncio.sleep(0)
        async with head_on(state):
            assert (await asyncio.wait_for(waiting, 10)).decode == WORKER
        assert link.num_waiting == 0


async def test_a_request_that_waits_in_a_head_that_dies_is_asked_for_again(state: StateDir) -> None:
    link = HeadLink(state, patience_s=30)
    async with linked(link):
        async with head_on(state) as first:
            await until(link, is_lost=False)
            first.service.assigner.reconsider = lambda: None  # type: ignore[method-assign]
            asking = asyncio.create_task(link.assign(route("patient"), timeout_s=30))
            while not first.router.num_waiting:
                await asyncio.sleep(0.01)
        async with head_on(state):
            assert (await asyncio.wait_for(asking, 10)).decode == WORKER


async def test_the_wait_for_a_head_is_bounded_in_time_and_number(state: StateDir) -> None:
    hasty = HeadLink(state, patience_s=0.05)
    with pytest.raises(Unavailable, match=r"within 0.05 s \(frontend.head_timeout_s\)"):
        await hasty.assign(route("late"), timeout_s=5)
    full = HeadLink(state, patience_s=30, most_waiting=1)
    first = asyncio.create_task(full.assign(route("first"), timeout_s=5))
    while not full.num_waiting:
        await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await full.assign(route("second"), timeout_s=5)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert full.num_waiting == 0


async def test_a_new_head_is_told_what_runs_and_hears_of_its_end(state: StateDir) -> None:
    link = HeadLink(state, patience_s=30)
    async with linked(link):
        async with head_on(state):
            await until(link, is_lost=False)
            await link.assign(route("running"), timeout_s=5)
            link.prefilled(RequestId("running"))
            await link.assign(route("ended"), timeout_s=5)
        await until(link, is_lost=True)
        link.release(RequestId("ended"))
        async with head_on(state) as second:
            await until(link, is_lost=False)
            async with asyncio.timeout(5):
                while not second.router.stats().active_requests:
                    await asyncio.sleep(0.01)
                load = second.router.loads()[WORKER]
                assert (load.num_requests, load.queued_prefill_tokens) == (1, 0)
                link.release(RequestId("running"))
                while second.router.stats().active_requests:
                    await asyncio.sleep(0.01)


async def test_another_head_is_found_though_the_connection_to_the_first_still_stands(state: StateDir) -> None:
    link = HeadLink(state, patience_s=30)
    async with linked(link), head_on(state) as first:
        await until(link, is_lost=False)
        async with head_on(state) as second, asyncio.timeout(10):
            while not second.service.peers or first.service.peers:
                await asyncio.sleep(0.01)


async def test_frontends_are_let_in_when_the_workers_are_back(state: StateDir) -> None:
    link = HeadLink(state, patience_s=30)
    async with linked(link), head_on(state) as head:
        await until(link, is_lost=False)
        head.service.gathered.clear()
        other = HeadLink(state, patience_s=30)
        async with linked(other):
            asking = asyncio.create_task(other.assign(route("early"), timeout_s=5))
            await link.assign(route("other"), timeout_s=5)  # a round trip to the head, and another
            await link.assign(route("other"), timeout_s=5)
            assert not asking.done()
            assert not other.heard.is_set()
            head.service.gathered.set()
            assert (await asyncio.wait_for(asking, 10)).decode == WORKER


async def test_a_frontend_that_is_not_ours_is_told_to_end(state: StateDir) -> None:
    link = HeadLink(state)
    retired = asyncio.Event()
    link.on_retire = retired.set
    async with linked(link), head_on(state, is_ours=False):
        await asyncio.wait_for(retired.wait(), 10)
