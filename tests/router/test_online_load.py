"""How many workers online requests need, by what came lately."""

import pytest

from hpcserve.router.online_load import OnlineLoad


def come(load, per_s, work_ms, seconds, start=0.0):
    for number in range(int(per_s * seconds)):
        load.note(work_ms, start + number / per_s)
    return start + seconds


@pytest.mark.parametrize(("per_s", "needed"), [(1, 1), (4, 2), (24, 4), (80, 8)])
def test_the_more_comes_the_more_workers_are_needed(per_s, needed):
    load = OnlineLoad()
    assert load.num_needed(come(load, per_s, 40.0, 100)) == needed


def test_a_short_while_tells_as_much_as_a_long_one():
    load = OnlineLoad()
    assert load.num_needed(come(load, 24, 40.0, 4)) == 4


def test_one_request_is_no_load():
    load = OnlineLoad()
    load.note(40.0, 0.0)
    assert load.num_needed(0.0) == 1


def test_what_was_long_ago_is_forgotten():
    load = OnlineLoad()
    now = come(load, 24, 40.0, 100)
    assert load.num_needed(now + 60) <= 2
    assert load.since(now + 60) == pytest.approx(60, abs=0.1)
    assert OnlineLoad().since(0.0) is None
