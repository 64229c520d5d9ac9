"""Who of the waiting requests is next, and how many may wait."""

import random

import pytest

from hpcserve.config.models import QueueConfig
from hpcserve.errors import Overloaded, RateLimited
from hpcserve.router.waiting import PATIENCE, WaitingRoom
from hpcserve.types import Caller, RequestId, RouteRequest


def request(name, tenant="", **fields):
    caller = Caller(tenant=tenant)
    return RouteRequest(
        request_id=RequestId(name), block_hashes=[], num_tokens=1, max_tokens=1, caller=caller, **fields
    )


def room(**config):
    return WaitingRoom(QueueConfig(**config))


def names(waiting):
    return [each.request.request_id for each in waiting]


def take(made, count):
    """Place one after the other, as a single worker would."""
    taken = []
    for _ in range(count):
        (each,) = made.next(1)
        made.remove(each.request.request_id, is_placed=True)
        taken.append(str(each.request.request_id))
    return taken


def test_the_shortest_is_next():
    made = room()
    for name, work_ms in (("long", 900.0), ("short", 20.0), ("middling", 100.0)):
        made.add(request(name), work_ms, now=0.0)
    assert names(made.next(3)) == ["short", "middling", "long"]


def test_who_came_first_is_next_if_so_configured():
    made = room(order="fcfs")
    for now, (name, work_ms) in enumerate((("long", 900.0), ("short", 20.0))):
        made.add(request(name), work_ms, now=float(now))
    assert names(made.next(2)) == ["long", "short"]


def test_a_long_prompt_is_overtaken_for_so_long_only():
    made = room()
    made.add(request("long"), 1000.0, now=0.0)
    made.add(request("in time"), 0.0, now=PATIENCE - 0.1)
    made.add(request("too late"), 0.0, now=PATIENCE + 0.1)
    assert names(made.next(3)) == ["in time", "long", "too late"]


def test_lower_classes_of_priority_go_first_and_what_was_under_way_before_them():
    made = room()
    made.add(request("third", priority=1), 10.0, 0.0)
    made.add(request("second", priority=-1), 1000.0, 0.0)
    made.add(request("first", priority=5, exclude=("w",)), 2000.0, 0.0)
    assert names(made.next(9)) == ["first"], "classes do not mix"
    assert take(made, 3) == ["first", "second", "third"]


def test_tenants_are_given_the_same_time_however_many_requests_they_send():
    made = room()
    for number in range(20):
        made.add(request(f"a{number}", "a"), 100.0, now=0.0)
    for number in range(4):
        made.add(request(f"b{number}", "b"), 100.0, now=1.0)
    assert sorted(name[0] for name in take(made, 8)) == ["a"] * 4 + ["b"] * 4


def test_a_tenant_of_long_prompts_gets_fewer_of_them():
    made = room()
    for number in range(20):
        made.add(request(f"a{number}", "a"), 300.0, now=0.0)
        made.add(request(f"b{number}", "b"), 100.0, now=0.0)
    taken = [name[0] for name in take(made, 12)]
    assert (taken.count("a"), taken.count("b")) == (3, 9)


def test_who_comes_later_is_not_owed_the_past():
    made = room()
    for number in range(10):
        made.add(request(f"a{number}", "a"), 100.0, now=0.0)
    take(made, 6)
    for number in range(4):
        made.add(request(f"b{number}", "b"), 100.0, now=1.0)
    assert sorted(name[0] for name in take(made, 4)) == ["a", "a", "b", "b"]


def test_looking_takes_nobody_out():
    made = room()
    for tenant in "ab":
        made.add(request(tenant, tenant), 10.0, 0.0)
    assert names(made.next(1)) == names(made.next(1))
    assert len(made) == 2


def test_too_many_get_a_503_that_says_when_to_try_again():
    made = room(max_requests=2)
    for name in "ab":
        made.add(request(name), 30_000.0, 0.0)
    with pytest.raises(Overloaded, match="max_requests") as caught:
        made.check(request("c"), num_workers=4)
    assert caught.value.http_status == 503
    assert caught.value.retry_after_s == 15  # 60 s of work for four workers


def test_too_many_of_one_tenant_get_a_429_and_others_do_not():
    made = room(max_requests_per_tenant=1)
    made.add(request("a", "a"), 10.0, 0.0)
    with pytest.raises(RateLimited, match="max_requests_per_tenant") as caught:
        made.check(request("a2", "a"), num_workers=1)
    assert (caught.value.http_status, caught.value.retry_after_s) == (429, 1)
    made.check(request("b", "b"), num_workers=1)


def test_what_was_under_way_may_always_wait():
    made = room(max_requests=1)
    made.add(request("a"), 10.0, 0.0)
    made.check(request("b", exclude=("w",)), num_workers=1)


def test_who_has_waited_for_too_long_is_named():
    made = room(max_wait_s=10.0)
    made.add(request("old"), 10.0, now=0.0)
    made.add(request("new"), 10.0, now=5.0)
    assert made.expired(now=11.0) == ["old"]


def test_whatever_comes_and_goes_everybody_is_taken_once():
    made, choose = room(), random.Random(0)
    waiting, taken = set(), []
    for number in range(500):
        name = f"r{number}"
        made.add(
            request(name, choose.choice("abc"), priority=choose.randrange(2)), choose.random() * 1000, float(number)
        )
        waiting.add(name)
        if choose.random() < 0.3:
            gone = choose.choice(sorted(waiting))
            made.remove(RequestId(gone))
            made.remove(RequestId(gone))
            waiting.discard(gone)
        elif choose.random() < 0.5:
            taken += take(made, 1)
            waiting.discard(taken[-1])
        assert len(made) == len(waiting)
    assert sorted(take(made, len(made))) == sorted(waiting)
    assert made.next(1) == []
