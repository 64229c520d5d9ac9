"""How many workers a load needs: against queueing theory worked out elsewhere, and at the ends of the scale."""

from __future__ import annotations

import math
import random

import pytest
from scenes import Scene, sight

from hpcserve.config.planning_models import PlannerConfig
from hpcserve.planner.decoding import step_ms, workers_to_decode
from hpcserve.planner.demand import MOST_LATE, Demand, workers_for
from hpcserve.types import Role

CONFIG = PlannerConfig(ttft_ms=1000, itl_ms=25)


def share_that_waits_longer(num: int, offered: float, mean_s: float, wait_s: float) -> float:
    """Simulate first come, first served, with exponential times: nothing of the formula is in here."""
    rng = random.Random(1)
    free_at, now, late = [0.0] * num, 0.0, 0
    for _ in range(60_000):
        now += rng.expovariate(offered / mean_s)
        first = min(range(num), key=free_at.__getitem__)
        starts = max(now, free_at[first])
        free_at[first] = starts + rng.expovariate(1 / mean_s)
        late += starts - now > wait_s
    return late / 60_000


@pytest.mark.parametrize(("offered", "wait_s"), [(0.5, 0.3), (2.6, 0.2), (6.0, 0.1)])
def test_so_many_workers_are_enough_and_one_fewer_is_not(offered: float, wait_s: float) -> None:
    num = workers_for(offered, 0.25, wait_s)
    assert share_that_waits_longer(num, offered, 0.25, wait_s) <= MOST_LATE * 1.1
    if num - 1 > offered:
        assert share_that_waits_longer(num - 1, offered, 0.25, wait_s) > MOST_LATE
    else:
        assert num == math.floor(offered) + 1


def test_no_load_needs_one_worker_of_each_role(scene: Scene) -> None:
    need = Demand(CONFIG).take(scene.see(sight(Role.PREFILL, 0), sight(Role.DECODE, 0)), is_split=True)
    assert (need.prefill, need.decode, need.total) == (1, 1, 2)


def test_prompts_that_wait_need_more_workers_than_those_that_come(scene: Scene) -> None:
    workers = (sight(Role.PREFILL, 0, queued_ms=4000), sight(Role.DECODE, 0))
    calm = Demand(CONFIG).take(scene.see(workers[1], sight(Role.PREFILL, 0), offered=0.5), is_split=True)
    need = Demand(CONFIG).take(scene.see(*workers, offered=0.5, waiting_ms=16_000), is_split=True)
    assert need.backlog_s == 20
    assert need.prefill >= calm.prefill + 2


def test_prompts_that_wait_for_room_to_decode_need_no_more_workers_that_compute_them(scene: Scene) -> None:
    workers = (sight(Role.PREFILL, 0), sight(Role.PREFILL, 1), sight(Role.DECODE, 0, kv_usage=0.99))
    calm = Demand(CONFIG).take(scene.see(*workers, offered=0.5), is_split=True)
    need = Demand(CONFIG).take(scene.see(*workers, offered=0.5, waiting_ms=16_000, wants_room=True), is_split=True)
    assert (need.prefill, need.backlog_s) == (calm.prefill, 0)
    assert need.decode == 2


def test_long_prompts_that_vary_need_more_workers_than_equal_short_ones(scene: Scene) -> None:
    workers = (sight(Role.PREFILL, 0), sight(Role.DECODE, 0))
    short = Demand(CONFIG).take(scene.see(*workers, offered=2.0, prompt_ms=20), is_split=True)
    long = Demand(CONFIG).take(scene.see(*workers, offered=2.0, prompt_ms=1000), is_split=True)
    assert short.offered == long.offered == 2.0
    assert short.prefill < long.prefill


def test_a_short_burst_counts_for_a_part_and_of_its_own_interval_in_full(scene: Scene) -> None:
    demand, workers = Demand(CONFIG), (sight(Role.PREFILL, 0), sight(Role.DECODE, 0))
    for _ in range(3):
        demand.take(scene.see(*workers, offered=0.3), is_split=True)
    need = demand.take(scene.see(*workers, offered=6.0), is_split=True)
    assert need.offered == pytest.approx((0.3 + 0.3 + 6.0) / 3, rel=0.1)
    assert need.total < need.total_now


def test_decoding_that_is_too_slow_needs_more_and_that_is_fast_enough_fewer() -> None:
    """At 60 % of their KV two workers take 29 ms a step; with 25 ms allowed 21 are aimed at, which is 36 %."""
    assert step_ms(0.6, 1.0) > 25
    num = workers_to_decode(1.2, 2, 0.0, 1.0, 25)
    assert num == 3
    assert workers_to_decode(0.1, 4, 0.0, 1.0, 25) == 1
    assert workers_to_decode(1.2, 2, 0.0, 2.0, 25) > num, "engines that are half as fast"
    assert workers_to_decode(0.1, 4, 2.0, 1.0, 25) > 2, "they compute prompts, too"


def test_the_same_load_needs_the_same_workers_however_many_have_it_now() -> None:
    """Requests stay for shorter where steps are faster, so that KV in use is no measure by itself."""

    def kv_on(num: int, rate: float) -> float:
        share = 0.5
        for _ in range(1000):
            share = 0.5 * share + 0.5 * min(0.95, rate * step_ms(share, 1.0) / num)
        return share * num

    rate = 0.05  # caches over ms: with four workers 1.0 of them is full
    needs = {workers_to_decode(kv_on(num, rate), num, 0.0, 1.0, 25) for num in (3, 4, 6, 8)}
    assert len(needs) == 1


def test_tokens_that_come_late_ask_for_one_more_but_not_for_ever(scene: Scene) -> None:
    def need(num: int, **seen: float) -> int:
        workers = [sight(Role.DECODE, each, kv_usage=0.1 / num, num_requests=9) for each in range(num)]
        return Demand(CONFIG).take(scene.see(*workers, sight(Role.PREFILL, 0), **seen), is_split=True).decode

    assert need(1) == 1
    assert need(1, late_itl=0.2) == 2
    assert need(1, gap_ms=26.0) == 2
    assert need(1, gap_ms=24.0) == 1
    assert need(9, gap_ms=26.0) <= 4
