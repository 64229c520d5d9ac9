"""What the router tells of reuse and moves reaches the simulated caches, and nothing changes where it tells nothing."""

import random

import msgspec
import pytest

from hpcserve.engine.mock import block_pool
from hpcserve.router.router import Router
from hpcserve.simulate import replay
from hpcserve.types import WorkerId


@pytest.fixture
def tell(monkeypatch):
    """Have every assignment changed."""
    place = Router.place

    def make(change):
        monkeypatch.setattr(Router, "place", lambda self, now: [change(each) for each in place(self, now)])

    return make


@pytest.fixture
def reuse(ask):
    """Four prompts of 37 blocks that come back now and then, among many that come once."""
    chance = random.Random(3)
    requests = []
    for index in range(400):
        first_id = 10 * chance.randrange(4) if chance.random() < 0.2 else 1000 + 10 * index
        requests.append(ask(at=2.0 * index, num_prompt=2401, num_output=2, first_id=first_id))
    return requests


def test_what_comes_back_is_found_more_often_if_the_router_says_so(scenario, reuse, tell):
    settings = scenario("kv", num_blocks=500)
    after = replay(settings, reuse)
    tell(lambda assignment: msgspec.structs.replace(assignment, reused_tokens=0))
    before = replay(settings, reuse)
    assert after.prefix_hit_ratio > 1.5 * before.prefix_hit_ratio
    assert after.ttft_ms.mean < before.ttft_ms.mean


@pytest.mark.parametrize("policy", ["random", "round_robin", "least_loaded", "power_of_two", "session", "dynamo"])
def test_without_a_word_of_the_router_it_is_plain_lru(scenario, conversations, monkeypatch, policy):
    settings = scenario(policy, workers=2, num_blocks=3000)
    report = replay(settings, conversations[:80])
    monkeypatch.setattr(block_pool, "KEPT_SHARE", 0.0)
    assert replay(settings, conversations[:80]) == report


@pytest.mark.parametrize(("pulls", "found"), [(False, 49 * 64), (True, 6400)])
def test_a_source_forgets_first_what_was_pulled_from_it(scenario, ask, tell, pulls, found):
    def change(assignment):
        if not pulls or assignment.request_id != "r3":
            return assignment
        return msgspec.structs.replace(assignment, source=WorkerId("both-0"), source_tokens=6400)

    tell(change)
    small = {"num_prompt": 63, "num_output": 1}  # no full block
    requests = [
        ask(first_id=100, num_output=1),
        ask(at=10, **small),
        ask(at=20, first_id=200, num_output=1),
        ask(at=30, first_id=200, num_prompt=6401, num_output=1),  # on the other worker
        ask(at=40, first_id=300, num_prompt=6401 + 3136, num_output=1),
        ask(at=50, **small),
        ask(at=60, first_id=100, num_prompt=6401, num_output=1),
    ]
    report = replay(scenario(workers=2, num_blocks=299), requests)
    assert report.kv_pulled_tokens == (6400 if pulls else 0)
    assert report.own_hit_ratio * sum(request.num_prompt for request in requests) == pytest.approx(found)
