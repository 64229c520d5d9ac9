"""The transport connector's halves, without vLLM: two engines, whose scheduler and worker halves run step by step."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hpcserve.engine.vllm.transport_scheduler import TransportScheduler
from hpcserve.engine.vllm.transport_worker import TransportWorker
from hpcserve.types import KvHandle
from tests.engine.vllm.loop_transport import Loop, LoopTransport


def torch() -> Any:
    """Return PyTorch, which takes long to load: not while tests are collected."""
    return pytest.importorskip("torch")


BLOCK = 4  # tokens
NUM_BLOCKS = 32
LEASE_S = 60.0
KEEP_EVERY_S = 10.0


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Request:
    """What the connector uses of vLLM's."""

    request_id: str
    num_prompt_tokens: int
    kv_transfer_params: dict[str, Any] | None
    status: Any = field(default_factory=lambda: SimpleNamespace(name="FINISHED_LENGTH_CAPPED"))


class Engine:
    """Both halves of one engine, with a cache of which the test says who has which blocks."""

    def __init__(self, loop: Loop, clock: Clock, *, dtype: str = "float32") -> None:
        self.transport = LoopTransport(loop)
        self.cache = torch().zeros(2, NUM_BLOCKS, BLOCK, 8, dtype=getattr(torch(), dtype))
        self.scheduler = TransportScheduler("mpi", BLOCK, keep_every_s=KEEP_EVERY_S, clock=clock)
        self.worker = TransportWorker(self.transport, 0, lease_s=LEASE_S, clock=clock)
        self.worker.register({"layer": self.cache}, NUM_BLOCKS, BLOCK)
        self.scheduler.ends = {0: self.worker.end()}
        self.failed: set[int] = set()

    def schedule(self, request: Request, blocks: list[int], *, num_cached: int = 0) -> int:
        """Give a new request its blocks; return how many tokens it waits for."""
        self.scheduler.on_new_request(request)
        num_external, _ = self.scheduler.get_num_new_matched_tokens(request, num_cached)
        allocated = SimpleNamespace(get_block_ids=lambda: (blocks,))
        self.scheduler.update_state_after_alloc(request, allocated, num_external)
        return num_external

    def step(self) -> tuple[set[str], set[str]]:
        """Run one step; return what vLLM would be told: (no longer read by a peer, no longer pulled)."""
        self.worker.obey(self.scheduler.build_orders())
        sent, received = self.worker.take_finished()
        self.failed |= self.worker.take_failed_blocks()
        self.scheduler.update(sent, received)
        return sent, received

    def prefill(self, name: str, blocks: list[int]) -> dict[str, Any]:
        """Compute a prompt that fills `blocks`, and return the parameters of its handle."""
        request = Request(name, len(blocks) * BLOCK, {"do_remote_decode": True})
        self.schedule(request, blocks)
        self.cache[:, blocks] = torch().randn(2, len(blocks), BLOCK, 8).to(self.cache.dtype)
        self.step()
        is_kept, params = self.scheduler.request_finished(request, blocks)
        assert is_kept
        assert params is not None
        KvHandle(transport="mpi", source="a", num_tokens=1, params=params)
        return params


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def engines(clock: Clock) -> list[Engine]:
    loop = Loop()
    return [Engine(loop, clock) for _ in range(2)]


def pull_all(engine: Engine) -> set[str]:
    """Let everything arrive that is under way; return the requests that have their KV, or will not get it."""
    over = engine.step()[1]
    while engine.transport.waiting:
        engine.transport.deliver()
        over |= engine.step()[1]
    return over


def test_blocks_arrive_and_are_given_back_by_their_source(engines: list[Engine]) -> None:
    one, two = engines
    params = one.prefill("p", [3, 4, 9])
    assert one.step() == (set(), set())
    assert two.schedule(Request("d", 12, params), [7, 1, 2]) == 12
    assert pull_all(two) == {"d"}
    assert torch().equal(two.cache[:, [7, 1, 2]], one.cache[:, [3, 4, 9]])
    assert not two.failed
    assert one.step() == ({"p"}, set())
    assert one.step() == (set(), set())


def test_nothing_is_given_back_while_it_is_read(engines: list[Engine], clock: Clock) -> None:
    one, two = engines
    two.schedule(Request("d", 12, one.prefill("p", [3, 4, 9])), [7, 1, 2])
    for _ in range(int(LEASE_S) * 3):
        clock.now += 1.0
        assert two.step() == (set(), set())
        assert one.step() == (set(), set())
    assert pull_all(two) == {"d"}
    assert not two.failed
    assert one.step()[0] == {"p"}


def test_a_request_that_waits_for_room_keeps_its_blocks(engines: list[Engine], clock: Clock) -> None:
    one, two = engines
    request = Request("d", 12, one.prefill("p", [3, 4, 9]))
    two.scheduler.on_new_request(request)
    for _ in range(int(LEASE_S + 3 * KEEP_EVERY_S)):
        clock.now += 1.0
        two.step()
        assert one.step() == (set(), set())


def test_a_lease_ends_when_nobody_comes(engines: list[Engine], clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    one, two = engines
    params = one.prefill("p", [3, 4, 9])
    with caplog.at_level(logging.WARNING):
        seconds = 0
        while not (ended := one.step()[0]):
            clock.now += 1.0
            seconds += 1
            assert seconds <= LEASE_S + 1
    assert ended == {"p"}
    assert seconds >= LEASE_S - 1
    assert "nobody fetched" in caplog.text
    two.schedule(Request("late", 12, params), [7, 1, 2])
    assert pull_all(two) == {"late"}
    assert two.failed == {7, 1, 2}


def test_time_in_which_the_source_was_frozen_does_not_end_a_lease(engines: list[Engine], clock: Clock) -> None:
    one, two = engines
    params = one.prefill("p", [3, 4, 9])
    one.step()
    clock.now += 10 * LEASE_S
    assert one.step() == (set(), set())
    two.schedule(Request("d", 12, params), [7, 1, 2])
    assert pull_all(two) == {"d"}
    assert not two.failed


def test_what_was_given_away_while_it_was_read_is_not_used(
    engines: list[Engine], caplog: pytest.LogCaptureFixture
) -> None:
    one, two = engines
    params = one.prefill("p", [3, 4, 9])
    one.step()
    two.schedule(Request("d", 12, params), [7, 1, 2])
    two.step()

    def give_away() -> None:
        one.worker._forget("p")
        one.cache[:, 3] = 0.0

    two.transport.deliver(half_way=give_away)
    assert pull_all(two) == {"d"}
    assert two.failed == {7, 1, 2}
    assert "given the blocks away" in caplog.text


def test_a_handle_is_good_once(engines: list[Engine]) -> None:
    one, two = engines
    params = one.prefill("p", [3, 4, 9])
    two.schedule(Request("d", 12, dict(params)), [7, 1, 2])
    pull_all(two)
    assert one.step()[0] == {"p"}
    one.prefill("next", [3, 4, 9])
    two.schedule(Request("again", 12, dict(params)), [10, 11, 12])
    assert pull_all(two) == {"again"}
    assert two.failed == {10, 11, 12}


def test_only_what_is_missing_is_pulled(engines: list[Engine]) -> None:
    one, two = engines
    params = one.prefill("p", [3, 4, 9])
    assert two.schedule(Request("d", 12, params), [7, 1, 2], num_cached=8) == 4
    pull_all(two)
    assert torch().equal(two.cache[:, 2], one.cache[:, 9])
    assert not two.cache[:, [7, 1]].any()


def test_a_handle_for_the_beginning_of_a_prompt_pulls_that(engines: list[Engine]) -> None:
    one, two = engines
    params = one.prefill("p", [3, 4]) | {"hpcserve_covered_tokens": 7}
    assert two.schedule(Request("d", 40, params), [7, 1, 2, 5]) == 7
    pull_all(two)
    assert torch().equal(two.cache[:, [7, 1]], one.cache[:, [3, 4]])
    assert not two.cache[:, [2, 5]].any()


def test_what_is_cached_already_is_not_pulled_and_given_back(engines: list[Engine]) -> None:
    one, two = engines
    params = one.prefill("p", [3, 4])
    assert two.schedule(Request("d", 40, params), [7, 1], num_cached=8) == 0
    two.step()
    assert not two.transport.waiting
    assert one.step()[0] == {"p"}


@pytest.mark.parametrize("after", ["before it had room", "while it was pulled", "while its lease was checked"])
def test_a_cancelled_request_gives_everything_back(engines: list[Engine], after: str) -> None:
    one, two = engines
    request = Request("d", 12, one.prefill("p", [3, 4, 9]), SimpleNamespace(name="FINISHED_ABORTED"))
    if after == "before it had room":
        two.scheduler.on_new_request(request)
    else:
        two.schedule(request, [7, 1, 2])
        two.step()
    if after == "while its lease was checked":
        two.transport.deliver()
        assert two.step() == (set(), set())
    assert two.scheduler.request_finished(request, [7, 1, 2]) == (False, None)
    assert two.step()[1] == (set() if after == "before it had room" else {"d"})
    assert not two.failed
    assert one.step()[0] == {"p"}


def test_a_cancelled_prefill_keeps_nothing(engines: list[Engine]) -> None:
    one, _ = engines
    request = Request("p", 12, {"do_remote_decode": True}, SimpleNamespace(name="FINISHED_ABORTED"))
    one.schedule(request, [3, 4, 9])
    one.step()
    assert one.worker._table.any()
    assert one.scheduler.request_finished(request, [3, 4, 9]) == (False, None)
    one.step()
    assert not one.worker._table.any()


def test_a_source_that_is_gone_costs_a_recompute(engines: list[Engine], caplog: pytest.LogCaptureFixture) -> None:
    one, two = engines
    params = one.prefill("p", [3, 4, 9])
    one.transport._loop.ends.pop(one.transport.describe())
    two.schedule(Request("d", 12, params), [7, 1, 2])
    assert pull_all(two) == {"d"}
    assert two.failed == {7, 1, 2}
    assert "nobody is there" in caplog.text


def test_a_cache_of_another_kind_is_refused_with_the_reason(
    engines: list[Engine], clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    one, _ = engines
    half = Engine(one.transport._loop, clock, dtype="float16")
    assert half.schedule(Request("d", 12, one.prefill("p", [3, 4, 9])), [7, 1, 2]) == 0
    assert "laid out as" in caplog.text
    assert "float16" in caplog.text


def test_parameters_that_are_not_ours_cost_a_recompute(engines: list[Engine], caplog: pytest.LogCaptureFixture) -> None:
    params = {"do_remote_prefill": True, "remote_engine_id": "x"}
    assert engines[0].schedule(Request("d", 12, params), [7, 1, 2]) == 0
    assert "not one of this transport's" in caplog.text


def test_a_request_may_pull_and_hand_over(engines: list[Engine]) -> None:
    one, two = engines
    params = one.prefill("p", [3, 4, 9]) | {"do_remote_decode": True}
    request = Request("d", 12, params)
    two.schedule(request, [7, 1, 2])
    pull_all(two)
    is_kept, onward = two.scheduler.request_finished(request, [7, 1, 2])
    assert is_kept
    assert onward is not None
    one.schedule(Request("back", 12, onward), [20, 21, 22])
    pull_all(one)
    assert torch().equal(one.cache[:, [20, 21, 22]], two.cache[:, [7, 1, 2]])


def test_leases_are_used_again_and_no_two_are_alike(engines: list[Engine]) -> None:
    one, two = engines
    seen = set()
    for number in range(50):
        params = one.prefill(f"p{number}", [3])
        seen.add(params["hpcserve_source"]["lease"][1])
        two.schedule(Request(f"d{number}", 4, params), [7])
        assert pull_all(two) == {f"d{number}"}
        assert one.step()[0] == {f"p{number}"}
    assert len(seen) == 50
    assert len(one.scheduler._slots) == 4096
    assert not two.failed


def test_many_handles_at_once_beyond_the_table_are_refused(
    engines: list[Engine], caplog: pytest.LogCaptureFixture
) -> None:
    one, _ = engines
    one.scheduler._slots = one.scheduler._slots[:1]
    one.prefill("p", [3])
    request = Request("q", 4, {"do_remote_decode": True})
    one.schedule(request, [4])
    assert one.scheduler.request_finished(request, [4]) == (False, None)
    assert "it gets none" in caplog.text


def test_a_note_that_means_nothing_is_said(engines: list[Engine], caplog: pytest.LogCaptureFixture) -> None:
    one, two = engines
    two.transport.notify(one.transport.describe(), b"\xff\xff")
    assert one.step() == (set(), set())
    assert "means nothing" in caplog.text
    assert np.count_nonzero(one.worker._table) == 0


def test_closing_lets_go_of_the_memory(engines: list[Engine]) -> None:
    engines[0].worker.close()
    assert engines[0].transport.is_closed
