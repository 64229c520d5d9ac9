"""When the router's queue is looked at, and what those who wait are told. The router is the real one."""

from __future__ import annotations

import asyncio

import pytest

from hpcserve.config.models import RouterConfig
from hpcserve.errors import Overloaded, RateLimited, Unavailable
from hpcserve.head import assigner as module
from hpcserve.head.assigner import Assigner
from hpcserve.router.router import Router
from hpcserve.types import (
    Assignment,
    Caller,
    EngineInfo,
    RequestId,
    Role,
    RouteRequest,
    WorkerId,
    WorkerInfo,
    WorkerState,
)


class WatchedRouter(Router):
    """Notes how many wait each time it is asked for places."""

    def __init__(self, config: RouterConfig) -> None:
        super().__init__(config, 32)
        self.looks: list[int] = []

    def place(self, now: float) -> list[Assignment]:
        self.looks.append(self.num_waiting)
        return super().place(now)


class Desk:
    """An assigner whose clock stands still until a test moves it."""

    def __init__(self, num_workers: int = 1, **queue: object) -> None:
        self.router = WatchedRouter(RouterConfig.model_validate({"queue": queue}))
        self.now = 1000.0
        self.ticked = asyncio.Event()
        self.assigner = Assigner(
            self.router,
            self.router._config.queue.max_wait_s,
            on_placed=lambda placed: None,
            on_tick=self.ticked.set,
            clock=lambda: self.now,
        )
        for number in range(num_workers):
            self.add(f"both-{number}-t")

    def add(self, worker: str) -> None:
        engine = EngineInfo(engine="s", model="m", block_size=32, num_kv_blocks=1000, max_model_len=10_000)
        self.router.update_worker(
            WorkerInfo(worker=WorkerId(worker), pool="both", role=Role.BOTH, state=WorkerState.READY, engine=engine)
        )
        self.assigner.reconsider()

    def assign(self, name: str, *, lost_on: str = "", tenant: str = "") -> asyncio.Future[Assignment]:
        return self.assigner.assign(
            RouteRequest(
                request_id=RequestId(name),
                block_hashes=[],
                num_tokens=4000,
                max_tokens=10,
                exclude=(WorkerId(lost_on),) if lost_on else (),
                caller=Caller(tenant=tenant),
            )
        )


async def turns() -> None:
    """Let what is due happen."""
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
def fast_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TICK_S", 0.005)


async def test_requests_that_arrive_in_one_turn_are_placed_together() -> None:
    desk = Desk(num_workers=3)
    answers = [desk.assign(name) for name in ("a", "b", "c")]
    placed = await asyncio.gather(*answers)
    assert desk.router.looks == [3]
    assert len({each.decode for each in placed}) == 3


async def test_a_request_waits_until_the_prompt_before_it_is_computed() -> None:
    desk = Desk()
    first, second = desk.assign("a"), desk.assign("b")
    await turns()
    before, after = (first, second) if first.done() else (second, first)
    assert before.done()
    assert not after.done()
    desk.assigner.prefilled(before.result().request_id)
    assert (await after).decode == "both-0-t"
    assert desk.router.num_waiting == 0


async def test_the_end_of_a_request_lets_the_next_begin() -> None:
    desk = Desk()
    await desk.assign("a")
    waiting = desk.assign("b")
    await turns()
    desk.assigner.release(RequestId("a"))
    await asyncio.wait_for(waiting, 10)


async def test_nobody_who_waits_costs_nothing() -> None:
    desk = Desk()
    await desk.assign("a")
    looks = len(desk.router.looks)
    for _ in range(3):
        desk.assigner.reconsider()
        await turns()
    assert len(desk.router.looks) == looks


async def test_what_is_released_while_it_waits_is_never_placed() -> None:
    desk = Desk()
    await desk.assign("a")
    waiting = desk.assign("b")
    await turns()
    desk.assigner.release(RequestId("b"))
    assert waiting.cancelled()
    assert desk.router.num_waiting == 0
    desk.assigner.release(RequestId("a"))
    await turns()
    assert desk.router.stats().active_requests == 0
    assert desk.router.stats().assignments == {"kv": 1}


async def test_an_assignment_for_somebody_who_has_just_gone_is_released_and_goes_to_the_next() -> None:
    desk = Desk()
    gone = desk.assign("a")
    gone.cancel()  # as a channel does that ends
    await turns()
    assert desk.router.stats().active_requests == 0
    assert (await desk.assign("b")).decode == "both-0-t"


async def test_who_asks_again_has_one_place_only() -> None:
    desk = Desk()
    await desk.assign("a")
    before = desk.assign("b")
    await turns()
    again = desk.assign("b")
    assert before.cancelled()
    assert desk.router.num_waiting == 1
    desk.assigner.release(RequestId("a"))
    await asyncio.wait_for(again, 10)


@pytest.mark.usefixtures("fast_ticks")
async def test_who_has_waited_for_too_long_is_told_when_to_try_again() -> None:
    desk = Desk(max_wait_s=30)
    await desk.assign("a")
    waiting = desk.assign("b")
    await turns()
    desk.now += 29
    await asyncio.wait_for(desk.ticked.wait(), 10)
    assert not waiting.done()
    desk.now += 2
    with pytest.raises(Overloaded, match="free for 30 s") as refused:
        await asyncio.wait_for(waiting, 10)
    assert refused.value.retry_after_s
    assert desk.router.num_waiting == 0
    assert desk.router.stats().active_requests == 1, "the one that runs is left alone"


async def test_beyond_the_bounds_requests_are_refused_at_once() -> None:
    desk = Desk(max_requests=2, max_requests_per_tenant=1)
    await desk.assign("a")
    waiting = [desk.assign("b", tenant="alice")]
    await turns()
    with pytest.raises(RateLimited):
        desk.assign("c", tenant="alice")
    waiting.append(desk.assign("d", tenant="bob"))
    with pytest.raises(Overloaded):
        desk.assign("e", tenant="carol")
    assert desk.router.num_waiting == 2
    assert not any(each.done() for each in waiting)


async def test_a_burst_for_which_hands_are_free_is_not_refused_for_its_size() -> None:
    desk = Desk(num_workers=3, max_requests=1)
    placed = await asyncio.gather(*(desk.assign(name) for name in ("a", "b", "c")))
    assert len({each.decode for each in placed}) == 3


async def test_without_a_worker_a_new_request_is_refused_and_who_waits_is_served_by_the_replacement() -> None:
    desk = Desk()
    await desk.assign("a")
    waiting = desk.assign("b")
    await turns()
    desk.router.remove_worker(WorkerId("both-0-t"))
    desk.assigner.reconsider()
    await turns()
    assert not waiting.done()
    with pytest.raises(Unavailable, match="READY"):
        desk.assign("c")
    desk.add("both-1-t")
    assert (await asyncio.wait_for(waiting, 10)).decode == "both-1-t"


async def test_a_deployment_that_goes_down_keeps_only_those_waiting_that_were_under_way() -> None:
    desk = Desk()
    await desk.assign("a")
    waiting, moved = desk.assign("b"), desk.assign("c", lost_on="both-9-t")
    await turns()
    desk.assigner.refuse()
    with pytest.raises(Unavailable, match="going down"):
        await asyncio.wait_for(waiting, 10)
    with pytest.raises(Unavailable, match="going down"):
        desk.assign("d")
    assert not moved.done()
    assert desk.router.num_waiting == 1
    desk.assigner.release(RequestId("a"))
    await asyncio.wait_for(moved, 10)


@pytest.mark.usefixtures("fast_ticks")
async def test_ticks_end_with_one_that_tells_of_the_empty_queue() -> None:
    desk = Desk()
    await desk.assign("a")
    waiting = desk.assign("b")
    await turns()
    desk.ticked.clear()
    desk.assigner.release(RequestId("a"))
    await asyncio.wait_for(waiting, 30)
    while desk.assigner._ticking is not None:  # on a busy machine a tick may be due before the place is told
        await asyncio.sleep(0)
    assert desk.ticked.is_set()


async def test_once_closed_nothing_is_placed_any_more() -> None:
    desk = Desk()
    waiting = desk.assign("a")
    desk.assigner.close()
    await turns()
    assert not waiting.done()
    assert desk.router.looks == []
