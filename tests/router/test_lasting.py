"""Time is part of the placement: who does not last for a request does not get it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcserve.config.models import RouterConfig
from hpcserve.router.lasting import OutputLengths
from hpcserve.router.router import Router
from hpcserve.types import Assignment, RequestId, Role, RouteRequest, WorkerId, WorkerInfo, WorkerState

NOW = 1000.0
POLICIES = ["random", "round_robin", "least_loaded", "power_of_two", "session", "dynamo", "kv"]
_ids = itertools.count()


def made(policy: str, leave_s: float = 20.0, **ends: float | None) -> Router:
    """Return a router with a worker of each name, whose jobs end so many seconds from `NOW`."""
    router = Router(RouterConfig(policy=policy), 32, leave_s=leave_s)  # type: ignore[arg-type]
    for name, left_s in ends.items():
        role = {"p": Role.PREFILL, "d": Role.DECODE}.get(name[0], Role.BOTH)
        end = None if left_s is None else NOW + left_s
        worker = WorkerInfo(worker=WorkerId(name), pool=role, role=role, state=WorkerState.READY, ends_at=end)
        router.update_worker(worker)
    return router


def ask(router: Router, num_tokens: int = 320, max_tokens: int = 16) -> Assignment:
    request_id = RequestId(f"r{next(_ids)}")
    router.submit(
        RouteRequest(request_id=request_id, block_hashes=[], num_tokens=num_tokens, max_tokens=max_tokens), NOW
    )
    (placed,) = router.place(NOW)
    router.prefill_done(request_id)
    return placed


@pytest.mark.parametrize("policy", POLICIES)
def test_a_long_answer_goes_to_a_worker_that_lasts_for_it_and_a_short_one_to_any(policy: str) -> None:
    router = made(policy, x=300.0, y=30_000.0)
    assert {ask(router, max_tokens=100_000).decode for _ in range(8)} == {"y"}
    assert {ask(router).decode for _ in range(60)} == {"x", "y"}


@pytest.mark.parametrize("policy", POLICIES)
def test_what_nobody_lasts_for_runs_where_it_is_moved_late(policy: str) -> None:
    router = made(policy, x=100.0, y=250.0, z=300.0)
    assert {ask(router, max_tokens=1_000_000).decode for _ in range(60)} == {"y", "z"}


def test_what_is_to_be_handed_over_before_the_end_is_no_time_to_run_in() -> None:
    late = made("round_robin", leave_s=0.0, x=100.0, y=None)
    assert {ask(late, max_tokens=1500).decode for _ in range(4)} == {"x", "y"}
    early = made("round_robin", leave_s=95.0, x=100.0, y=None)
    assert {ask(early, max_tokens=1500).decode for _ in range(4)} == {"y"}


def test_a_prefill_worker_has_to_last_for_the_prompt_only() -> None:
    router = made("kv", p=200.0, d0=30_000.0, d1=300.0)
    placed = [ask(router, num_tokens=4000, max_tokens=100_000) for _ in range(4)]
    assert {(each.prefill, each.decode) for each in placed} == {("p", "d0")}


def test_the_prompts_that_queue_at_a_worker_count() -> None:
    router = made("least_loaded", x=60.0, y=6000.0)
    for number in range(40):
        queued = RequestId(f"q{number}")
        only_x = (WorkerId("y"),)
        request = RouteRequest(request_id=queued, block_hashes=[], num_tokens=20_000, max_tokens=1, exclude=only_x)
        assert router.assign(request, NOW).decode == "x"
    assert {ask(router, max_tokens=500).decode for _ in range(4)} == {"y"}


def test_how_long_answers_are_is_learned_and_bounded_by_what_is_asked_for() -> None:
    lengths = OutputLengths()
    for _ in range(19):
        lengths.note(10)
    assert lengths.expect(5000) == 5000, "a few say nothing"
    for _ in range(81):
        lengths.note(100)
    assert lengths.expect(5000) == 100
    assert lengths.expect(7) == 7
    for _ in range(256):
        lengths.note(2000)
    assert lengths.expect(5000) == 2000, "the newest count"


def test_short_answers_let_workers_be_used_for_longer() -> None:
    router = made("round_robin", x=300.0, y=30_000.0)
    for _ in range(20):
        router.lasting.lengths.note(50)
    assert {ask(router, max_tokens=100_000).decode for _ in range(4)} == {"x", "y"}


@given(
    st.sampled_from(POLICIES),
    st.lists(st.floats(31.0, 100_000.0), min_size=1, max_size=6),
    st.integers(1, 30_000),
    st.integers(1, 100_000),
)
def test_nobody_gets_what_they_do_not_last_for_while_another_does(
    policy: str, ends: list[float], num_tokens: int, max_tokens: int
) -> None:
    router = made(policy, **{f"x{number}": left_s for number, left_s in enumerate(ends)})
    infos = [
        WorkerInfo(worker=WorkerId(f"x{n}"), pool="both", role=Role.BOTH, state=WorkerState.READY, ends_at=NOW + left)
        for n, left in enumerate(ends)
    ]
    lasting = {info.worker for info in router.lasting.among(infos, num_tokens, max_tokens, NOW)}
    assert ask(router, num_tokens, max_tokens).decode in lasting
