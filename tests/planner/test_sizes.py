"""How many workers are asked for and given back, and who goes."""

from __future__ import annotations

from scenes import Scene, sight

from hpcserve.config.models import PoolsConfig
from hpcserve.config.planning_models import PlannerConfig
from hpcserve.planner import Planner, Resize, Sight
from hpcserve.types import Role

ONE = PoolsConfig(workers=1)
SPLIT = PoolsConfig(mode="disaggregated", prefill=1, decode=1)


def planner(pools: PoolsConfig = ONE, *, can_resize: bool = True, **settings: object) -> Planner:
    config = {"min_workers": 1, "max_workers": 8, "shrink_s": 60.0, "idle_s": 600.0} | settings
    return Planner(PlannerConfig(enabled=True, flip_roles=False, **config), pools, can_resize=can_resize)  # type: ignore[arg-type]


def both(num: int, *, coming: int = 0, busy: int = 1) -> list[Sight]:
    ready = [sight(Role.BOTH, each, num_requests=busy) for each in range(num)]
    return ready + [sight(Role.BOTH, num + each, state="coming") for each in range(coming)]


def resize(plans: Planner, *seen: object) -> Resize | None:
    changes = [each for one in seen for each in plans.decide(one).decisions]  # type: ignore[arg-type]
    assert len(changes) <= 1
    assert not changes or isinstance(changes[0], Resize)
    return changes[0] if changes else None  # type: ignore[return-value]


def test_what_is_needed_for_two_intervals_is_asked_for_with_the_reason(scene: Scene) -> None:
    plans = planner()
    assert resize(plans, scene.see(*both(1), offered=2.0)) is None
    change = resize(plans, scene.see(*both(1), offered=2.0))
    assert change is not None
    assert change.kind == "grow"
    assert change.sizes["both"] >= 3
    assert change.text.startswith(f"1 -> {change.sizes['both']} workers: prompts need ")


def test_jobs_that_wait_in_the_queue_count_as_asked_for(scene: Scene) -> None:
    plans = planner()
    for _ in range(2):
        change = resize(plans, scene.see(*both(1), offered=2.0))
    assert change is not None
    coming = both(1, coming=change.sizes["both"] - 1)
    assert resize(plans, *(scene.see(*coming, offered=2.0) for _ in range(40))) is None


def test_a_worker_that_is_wanted_but_has_no_job_counts_too(scene: Scene) -> None:
    plans = planner()
    assert resize(plans, *(scene.see(*both(1), sizes={"both": 6}, offered=2.0) for _ in range(5))) is None


def test_there_are_never_more_than_the_most_nor_fewer_than_the_least(scene: Scene) -> None:
    plans = planner(max_workers=3, min_workers=2)
    changes = [each for _ in range(4) for each in plans.decide(scene.see(*both(2), offered=20.0)).decisions]
    assert {change.sizes["both"] for change in changes if isinstance(change, Resize)} == {3}
    plans = planner(min_workers=2)
    assert resize(plans, *(scene.see(*both(2), offered=0.01) for _ in range(100))) is None


def test_what_was_not_needed_for_long_is_given_back_one_after_another(scene: Scene) -> None:
    plans, num, moments = planner(shrink_s=80.0), 4, []
    for _ in range(60):
        change = resize(plans, scene.see(*both(num), offered=0.1))
        if change is not None:
            assert change.sizes["both"] == num - 1
            assert "would have been enough" in change.reason
            num -= 1
            moments.append(scene.now - 100)
    assert num == 1
    assert moments[0] >= 80
    assert moments[1] - moments[0] >= 10


def test_what_takes_long_to_come_back_is_kept_for_longer(scene: Scene) -> None:
    plans = planner(shrink_s=60.0)
    assert resize(plans, *(scene.see(*both(2), offered=0.1, wait_s=300.0) for _ in range(59))) is None
    assert resize(plans, *(scene.see(*both(2), offered=0.1, wait_s=300.0) for _ in range(3))) is not None


def test_what_waits_in_the_queue_goes_before_what_works_and_then_the_idlest(scene: Scene) -> None:
    def leaving(workers: list[Sight]) -> tuple[str, ...]:
        plans = planner(shrink_s=20.0)
        changes = [each for _ in range(9) for each in plans.decide(scene.see(*workers, offered=0.1)).decisions]
        assert isinstance(changes[0], Resize)
        return changes[0].leaving

    busy = [sight(Role.BOTH, each, num_requests=5 - each) for each in range(3)]
    assert leaving(busy) == ("both-2",)
    assert leaving([*busy, sight(Role.BOTH, 7, state="coming")]) == ("both-7",)


def test_the_role_that_lacks_workers_gets_the_new_one_and_the_other_gives_the_old_one(scene: Scene) -> None:
    workers = [sight(Role.PREFILL, 0), sight(Role.DECODE, 0)]
    plans = planner(SPLIT)
    for _ in range(2):
        change = resize(plans, scene.see(*workers, offered=2.0))
    assert change is not None
    assert change.sizes["decode"] == 1
    assert change.sizes["prefill"] > 1
    plans = planner(SPLIT, shrink_s=20.0)
    workers += [sight(Role.PREFILL, 1, pool=Role.DECODE), sight(Role.DECODE, 2, num_requests=9)]
    workers[0] = sight(Role.PREFILL, 0, num_requests=3)
    changes = [each for _ in range(9) for each in plans.decide(scene.see(*workers, offered=0.1)).decisions]
    assert isinstance(changes[0], Resize)
    assert changes[0].leaving == ("decode-0",)
    assert changes[0].sizes == {"prefill": 1, "decode": 2}
    assert changes[0].roles == {Role.PREFILL: 2, Role.DECODE: 1}


def test_without_requests_everything_above_the_least_is_given_back_and_a_request_wakes_it(scene: Scene) -> None:
    plans = planner(SPLIT, min_workers=0, idle_s=30.0)
    workers = [sight(Role.PREFILL, 0), sight(Role.DECODE, 0)]
    assert resize(plans, scene.see(*workers, offered=0.1), *(scene.see(*workers) for _ in range(5))) is None
    change = resize(plans, scene.see(*workers))
    assert change is not None
    assert change.sizes == {"prefill": 0, "decode": 0}
    assert "nobody has asked for anything for 30 s" in change.text
    asleep = {"prefill": 0, "decode": 0}
    assert resize(plans, *(scene.see(sizes=asleep) for _ in range(9))) is None
    change = resize(plans, scene.see(sizes=asleep, num_waiting=1))
    assert change is not None
    assert change.sizes == {"prefill": 1, "decode": 1}
    assert "1 requests wait, and there is no worker" in change.text


def test_a_request_that_runs_for_long_keeps_its_worker(scene: Scene) -> None:
    plans = planner(min_workers=0, idle_s=30.0)
    assert resize(plans, *(scene.see(*both(1)) for _ in range(30))) is None


def test_sizes_stay_where_nothing_else_was_allowed(scene: Scene) -> None:
    for plans in (planner(min_workers=None, max_workers=None), planner(can_resize=False)):
        assert resize(plans, *(scene.see(*both(1), offered=5.0) for _ in range(9))) is None
