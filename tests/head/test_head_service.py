"""The head's channel over real TLS on loopback: what frontends that come, wait and go leave behind."""

from __future__ import annotations

import asyncio
import gc
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from time import monotonic

import msgspec
import pytest

from hpcserve.comm.channel import Channel, connect
from hpcserve.comm.tls import Identity, create_identity
from hpcserve.config.models import RouterConfig
from hpcserve.errors import ConnectionLost, Overloaded, RateLimited, Unavailable
from hpcserve.head import service
from hpcserve.head.service import HeadService
from hpcserve.router.router import Router
from hpcserve.types import (
    Assignment,
    Caller,
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


class Silent:
    """A peer that only asks."""

    async def on_call(self, op: str, body: msgspec.Raw) -> object:
        raise AssertionError(op)

    def on_message(self, op: str, body: msgspec.Raw) -> None: ...

    def on_close(self) -> None: ...


class Head:
    """A service with one worker, and channels to it."""

    def __init__(self, identity: object, **queue: object) -> None:
        config = RouterConfig.model_validate({"queue": queue})
        self.identity = identity
        self.router = Router(config, 32)
        engine = EngineInfo(engine="s", model="m", block_size=32, num_kv_blocks=1000, max_model_len=10_000)
        self.router.update_worker(
            WorkerInfo(worker=WorkerId("w"), pool="both", role=Role.BOTH, state=WorkerState.READY, engine=engine)
        )
        self.service = HeadService(
            self.router,
            identity,
            max_wait_s=config.queue.max_wait_s,
            make_status=self.status,
            on_frontend=lambda info, is_there: None,
            on_stop=lambda request: None,
        )
        self.address = ""
        self.stack = AsyncExitStack()

    def status(self) -> Status:
        return Status(
            name="t",
            phase=Phase.SERVING,
            model="m",
            mode="aggregated",
            policy="kv",
            cluster="local",
            num_waiting=self.router.num_waiting,
        )

    async def frontend(self) -> Channel:
        channel = await connect(self.address, self.identity, timeout_s=5)
        running = asyncio.create_task(channel.run(Silent()))

        async def end() -> None:
            channel.close()
            await running

        self.stack.push_async_callback(end)
        return channel

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.002)


MakeHead = Callable[..., Awaitable[Head]]


@pytest.fixture
async def make_head(tmp_path: Path) -> AsyncIterator[MakeHead]:
    cert, key = create_identity()
    (tmp_path / "cert.pem").write_bytes(cert)
    (tmp_path / "key.pem").write_bytes(key)
    identity = Identity(tmp_path / "cert.pem", tmp_path / "key.pem")
    async with AsyncExitStack() as stack:

        async def make(**queue: object) -> Head:
            head = Head(identity, **queue)
            head.address = await head.service.start("127.0.0.1")
            stack.push_async_callback(head.service.close)
            stack.push_async_callback(head.stack.aclose)
            return head

        yield make


def route(name: str, tenant: str = "") -> RouteRequest:
    return RouteRequest(
        request_id=RequestId(name), block_hashes=[], num_tokens=4000, max_tokens=10, caller=Caller(tenant=tenant)
    )


def ask(channel: Channel, name: str, tenant: str = "") -> asyncio.Task[Assignment]:
    return asyncio.create_task(channel.call("assign", route(name, tenant), Assignment, timeout_s=10))


async def test_a_call_is_answered_when_the_request_is_placed_however_long_that_takes(make_head: MakeHead) -> None:
    head = await make_head()
    channel = await head.frontend()
    assert (await ask(channel, "a")).decode == "w"
    waiting = ask(channel, "b")
    await head.until(lambda: head.router.num_waiting == 1)
    status = await channel.call("subscribe", None, Status, timeout_s=5)
    assert status.num_waiting == 1, "other calls pass the one that waits"
    channel.send("prefilled", "a")
    assert (await asyncio.wait_for(waiting, 5)).decode == "w"


async def test_who_goes_away_takes_what_waits_and_what_runs_along(make_head: MakeHead) -> None:
    head = await make_head()
    leaving, staying = await head.frontend(), await head.frontend()
    await ask(leaving, "a")
    lost, kept = ask(leaving, "b"), ask(staying, "c")
    await head.until(lambda: head.router.num_waiting == 2)
    leaving.close()
    with pytest.raises(ConnectionLost):
        await asyncio.wait_for(lost, 5)
    assert (await asyncio.wait_for(kept, 5)).request_id == "c"
    assert head.router.num_waiting == 0
    assert head.router.stats().active_requests == 1
    assert head.router.stats().assignments == {"kv": 2}


async def test_what_is_released_in_the_message_that_asked_leaves_nothing(make_head: MakeHead) -> None:
    head = await make_head()
    channel = await head.frontend()
    hung_up = ask(channel, "a")
    await asyncio.sleep(0)  # it was sent, but not yet written
    hung_up.cancel()
    channel.send("release", "a")
    await channel.call("subscribe", None, Status, timeout_s=5)
    assert head.router.num_waiting == 0
    assert head.router.stats().active_requests == 0
    assert (await asyncio.wait_for(ask(channel, "b"), 5)).decode == "w"


async def test_a_request_that_finished_is_released_and_its_length_learned(make_head: MakeHead) -> None:
    head = await make_head()
    channel = await head.frontend()
    for number in range(20):
        await asyncio.wait_for(ask(channel, f"r{number}"), 5)
        channel.send("finished", (f"r{number}", 7))
    await head.until(lambda: head.router.stats().active_requests == 0)
    assert head.router.lasting.lengths.expect(1000) == 7


async def test_a_release_takes_a_waiting_request_out_and_its_call_is_never_answered(make_head: MakeHead) -> None:
    head = await make_head()
    channel = await head.frontend()
    await ask(channel, "a")
    hung_up = ask(channel, "b")
    await head.until(lambda: head.router.num_waiting == 1)
    hung_up.cancel()
    channel.send("release", "b")
    await head.until(lambda: head.router.num_waiting == 0)
    channel.send("release", "a")
    await head.until(lambda: head.router.stats().active_requests == 0)
    assert head.router.stats().assignments == {"kv": 1}
    (served,) = head.service._listener._channels
    assert not served._answers


async def test_refusals_keep_their_kind_and_say_when_to_try_again(make_head: MakeHead) -> None:
    head = await make_head(max_requests=2, max_requests_per_tenant=1)
    channel = await head.frontend()
    await ask(channel, "a")
    waiting = [ask(channel, "b", "alice"), ask(channel, "c", "bob")]
    await head.until(lambda: head.router.num_waiting == 2)
    with pytest.raises(Overloaded, match="max_requests") as overloaded:
        await ask(channel, "d", "carol")
    channel.send("release", "c")
    with pytest.raises(RateLimited, match="max_requests_per_tenant") as limited:
        await ask(channel, "e", "alice")
    assert overloaded.value.http_status == 503
    assert limited.value.http_status == 429
    assert all((each.value.retry_after_s or 0) >= 1 for each in (overloaded, limited))
    for each in waiting:
        each.cancel()


async def test_a_deployment_that_goes_down_tells_those_that_wait(make_head: MakeHead) -> None:
    head = await make_head()
    channel = await head.frontend()
    await ask(channel, "a")
    waiting = ask(channel, "b")
    await head.until(lambda: head.router.num_waiting == 1)
    head.service.refuse()
    with pytest.raises(Unavailable, match="going down"):
        await asyncio.wait_for(waiting, 5)


async def test_requests_that_are_over_leave_nothing_behind(make_head: MakeHead) -> None:
    head = await make_head(order="fcfs")
    channel = await head.frontend()

    async def serve(first: int, count: int) -> int:
        for number in range(first, first + count):
            await ask(channel, f"r{number}", tenant=f"t{number}")
            channel.send("prefilled", f"r{number}")
            channel.send("release", f"r{number}")
        await head.until(lambda: head.router.stats().active_requests == 0)
        return num_entries(head.service, head.router)

    after_few = await serve(0, 20)
    assert await serve(20, 200) == after_few


def num_entries(*roots: object) -> int:
    """Return the sizes of all containers in these and in what is ours of what they refer to."""
    seen, todo, total = set[int](), [*roots], 0
    while todo:
        each = todo.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, dict | list | set | deque):
            total += len(each)
            todo += [*each, *each.values()] if isinstance(each, dict) else each
        elif type(each).__module__.startswith("hpcserve."):
            todo += gc.get_referents(each)
    return total


async def test_changes_of_load_are_told_together_and_others_at_once(
    make_head: MakeHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = await make_head()
    channel = await head.frontend()
    await channel.call("subscribe", None, Status, timeout_s=5)
    told: list[float] = []
    monkeypatch.setattr(head.service, "make_status", lambda: told.append(monotonic()) or head.status())
    monkeypatch.setattr(service, "_LOADS_INTERVAL_S", 0.3)
    publishing = asyncio.create_task(head.service.publish_loop())
    try:
        began = monotonic()
        for _ in range(20):
            head.service.note_load()
            await asyncio.sleep(0.005)
        await head.until(lambda: len(told) == 1)
        assert told[0] - began >= 0.3
        monkeypatch.setattr(service, "_LOADS_INTERVAL_S", 3600.0)
        head.service.note_load()
        head.service.notify()
        await head.until(lambda: len(told) == 2)
    finally:
        publishing.cancel()
        await asyncio.gather(publishing, return_exceptions=True)
