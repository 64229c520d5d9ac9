"""Which workers change their roles, when, and why."""

from __future__ import annotations

import itertools

import pytest
from scenes import Scene, sight

from hpcserve.config.models import PoolsConfig
from hpcserve.config.planning_models import PlannerConfig
from hpcserve.planner import Flip, Planner, Sight
from hpcserve.planner.decisions import Need
from hpcserve.planner.roles import best_split
from hpcserve.types import Role

POOLS = PoolsConfig(mode="disaggregated", prefill=1, decode=3)
HEAVY = {"offered": 2.5, "waiting_ms": 4000.0}


def planner(**settings: object) -> Planner:
    return Planner(PlannerConfig(enabled=True, **settings), POOLS)  # type: ignore[arg-type]


def split(prefill: int, decode: int, **load: float) -> list[Sight]:
    return [
        *(sight(Role.PREFILL, number) for number in range(prefill)),
        *(sight(Role.DECODE, number, **load) for number in range(decode)),
    ]


@pytest.mark.parametrize(
    ("prefill", "decode", "num", "now", "best"),
    [
        (1, 1, 4, 1, 1),  # enough of both: it stays as it is, whatever that is
        (1, 1, 4, 3, 3),
        (3, 1, 4, 1, 3),
        (1, 3, 4, 3, 1),
        (8, 8, 4, 2, 2),  # too few of both: the split that is least bad
        (9, 3, 4, 1, 3),
        (9, 0, 4, 1, 3),  # never the last one of a role
        (4, 4, 5, 2, 2),  # no better the other way round
    ],
)
def test_workers_are_split_as_they_are_needed(prefill: int, decode: int, num: int, now: int, best: int) -> None:
    assert best_split(Need(prefill=prefill, decode=decode), num, now) == best


def test_a_split_that_keeps_up_is_better_than_one_that_is_late_in_one_role_only() -> None:
    need = Need(prefill=2, decode=4, least_prefill=1, least_decode=3)
    assert best_split(need, 4, 2) == 1, "with 2 and 2 more and more would wait to be decoded"
    assert best_split(need, 4, 1) == 1
    assert best_split(need, 6, 2) == 2


def test_a_change_must_be_wanted_for_a_while_and_names_its_reason(scene: Scene) -> None:
    plans, workers = planner(), split(1, 3, kv_usage=0.05)
    first = plans.decide(scene.see(*workers, **HEAVY))
    assert first.decisions == ()
    assert "decode-0 becomes a prefill worker" in first.wishes[0]
    plan = plans.decide(scene.see(*workers, **HEAVY))
    flip = plan.decisions[0]
    assert isinstance(flip, Flip)
    assert flip.role is Role.PREFILL
    assert flip.text.startswith("decode-0 becomes a prefill worker: prompts need ")
    assert "and have 1, 4.0 s of them wait; decoding needs 1 and has 3 at 5% of their KV" in flip.text


def test_a_burst_of_one_interval_changes_nothing(scene: Scene) -> None:
    plans, workers = planner(), split(1, 3)
    for offered in (0.1, 0.9, 0.1, 0.1, 0.1):
        assert plans.decide(scene.see(*workers, offered=offered)).decisions == ()


def test_the_idlest_worker_goes_over(scene: Scene) -> None:
    plans = planner()
    workers = [sight(Role.PREFILL, 0), *(sight(Role.DECODE, each, num_requests=9 - each) for each in range(3))]
    for _ in range(2):
        plan = plans.decide(scene.see(*workers, **HEAVY))
    assert [each.worker for each in plan.decisions] == ["decode-2"]  # type: ignore[union-attr]


def test_there_is_a_pause_between_changes(scene: Scene) -> None:
    plans = planner(flip_pause_s=15)
    workers, moments = split(1, 4), []
    for _ in range(8):
        for decision in plans.decide(scene.see(*workers, offered=3.5, waiting_ms=9000)).decisions:
            moments.append(scene.now)
            assert isinstance(decision, Flip)
        if len(moments) == 1:
            workers = split(2, 3)
    assert len(moments) >= 2
    assert all(later - earlier >= 15 for earlier, later in itertools.pairwise(moments) if later > earlier)


def test_the_last_worker_of_a_role_keeps_it(scene: Scene) -> None:
    plans = planner()
    for _ in range(5):
        assert plans.decide(scene.see(*split(1, 1), **HEAVY)).decisions == ()


def test_a_role_that_lost_its_last_worker_gets_one_at_once(scene: Scene) -> None:
    flips = planner().decide(scene.see(*split(0, 3), sizes={"prefill": 1, "decode": 3})).decisions
    assert [each.role for each in flips if isinstance(each, Flip)] == [Role.PREFILL]


def test_workers_that_are_not_ready_are_left_alone(scene: Scene) -> None:
    plans = planner()
    workers = [sight(Role.PREFILL, 0), sight(Role.DECODE, 0), *(sight(Role.DECODE, n, state="coming") for n in (1, 2))]
    for _ in range(4):
        assert plans.decide(scene.see(*workers, **HEAVY)).decisions == ()


def test_roles_stay_where_they_are_not_to_change(scene: Scene) -> None:
    plans = planner(flip_roles=False)
    for _ in range(4):
        plan = plans.decide(scene.see(*split(1, 3), **HEAVY))
        assert (plan.decisions, plan.wishes) == ((), ())
