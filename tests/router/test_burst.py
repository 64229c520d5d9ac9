"""Which of a burst's requests start, and which wait for hands that are free."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcserve.router.burst import NEVER, Burst, choose, pack

PASS_MS = 16.5


def burst(work, num_workers=4, busy=(), costs=None, waited=None):
    """Requests that take the same everywhere; workers in `busy` have so many milliseconds of work left."""
    left = dict(busy)
    work = sorted(work)
    num_free = num_workers - len(left)
    return Burst(
        units=pack(work, num_free, 0, PASS_MS)[: 2 * num_free],
        work=work,
        waited=waited or [0.0] * len(work),
        costs=np.array([[each] * num_workers for each in work]) if costs is None else np.array(costs),
        is_free=np.array([worker not in left for worker in range(num_workers)]),
        free_in=np.array([left.get(worker, 0.0) for worker in range(num_workers)]),
    )


def started(made):
    return sorted(request for request, _ in choose(made))


def test_as_many_as_there_are_free_workers_start_each_on_its_own():
    places = choose(burst([100.0, 200.0, 300.0, 400.0]))
    assert sorted(request for request, _ in places) == [0, 1, 2, 3]
    assert len({worker for _, worker in places}) == 4


def test_in_a_larger_burst_those_of_middling_length_wait_for_the_shortest():
    assert started(burst([60.0, 70.0, 300.0, 310.0, 320.0, 1000.0])) == [0, 1, 4, 5]


def test_the_shortest_share_a_pass_so_that_nobody_has_to_wait():
    places = dict(choose(burst([20.0, 22.0, 300.0, 310.0, 1000.0])))
    assert sorted(places) == [0, 1, 2, 3, 4]
    assert places[0] == places[1]


def test_prompts_that_would_delay_each_other_by_much_do_not_share_a_pass():
    assert len(choose(burst([100.0, 110.0, 300.0, 310.0, 1000.0]))) == 4


def test_a_request_waits_for_a_busy_worker_that_suits_it_much_better():
    costs = [[500.0, 40.0]]
    assert choose(burst([40.0], 2, busy=[(1, 10.0)], costs=costs)) == []
    assert choose(burst([40.0], 2, busy=[(1, 800.0)], costs=costs)) == [(0, 0)]


def test_whoever_has_waited_long_takes_what_is_free():
    costs = [[500.0, 40.0]]
    assert choose(burst([40.0], 2, busy=[(1, 10.0)], costs=costs, waited=[600.0])) == [(0, 0)]


def test_nobody_starts_where_it_cannot():
    assert choose(burst([40.0], 2, costs=[[NEVER, NEVER]])) == []
    assert choose(burst([40.0, 50.0], 2, costs=[[NEVER, 40.0], [NEVER, 50.0]])) == [(0, 1)]


@given(st.data())
def test_every_start_is_on_a_free_worker_that_can_and_nobody_starts_twice(data):
    num_workers = data.draw(st.integers(1, 6))
    num_busy = data.draw(st.integers(0, num_workers - 1))
    count = data.draw(st.integers(1, 2 * (num_workers - num_busy)))
    work = data.draw(st.lists(st.floats(17.0, 2000.0), min_size=count, max_size=count))
    cost = st.one_of(st.just(NEVER), st.floats(0.0, 5000.0))
    row = st.lists(cost, min_size=num_workers, max_size=num_workers)
    costs = data.draw(st.lists(row, min_size=count, max_size=count))
    made = burst(work, num_workers, [(w, 50.0) for w in range(num_busy)], costs)
    places = choose(made)
    assert len({request for request, _ in places}) == len(places)
    for request, worker in places:
        assert made.is_free[worker]
        assert made.costs[request, worker] < NEVER


@pytest.mark.parametrize("count", [1, 2, 4])
def test_with_hands_free_and_nobody_busy_everybody_starts(count):
    assert len(choose(burst([50.0 * (n + 1) for n in range(count)]))) == count


def test_many_short_prompts_of_one_worker_share_a_pass():
    assert len(pack([18.0] * 64, 1, 0, PASS_MS)) <= 4
    assert pack([18.0] * 64, 64, 0, PASS_MS) == [[number] for number in range(64)]


def test_long_prompts_never_share_one():
    assert len(pack([400.0] * 8, 1, 1000, PASS_MS)) == 8


@given(st.lists(st.floats(16.5, 3000.0), min_size=1, max_size=30), st.integers(1, 8), st.integers(0, 5000))
def test_packing_keeps_everybody_in_order(work, num_free, num_behind):
    units = pack(work, num_free, num_behind, PASS_MS)
    assert [request for unit in units for request in unit] == list(range(len(work)))
    assert len(units) >= min(num_free, len(work))
