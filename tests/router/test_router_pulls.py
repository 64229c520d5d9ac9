"""Policy `kv`: when a warm prefix is pulled from another worker instead of being computed."""

import pytest

from hpcserve.router.timing import Timing
from hpcserve.types import EngineInfo, Role

PREFIX = range(120)  # blocks; 3,840 tokens


def engine(transport="mock", num_kv_blocks=16384):
    return EngineInfo(
        engine="mock",
        model="m",
        block_size=32,
        num_kv_blocks=num_kv_blocks,
        max_model_len=100_000,
        kv_transport=transport,
    )


def busy(bench, worker, num_tokens=8000):
    """Queue a prompt that nobody holds on `worker`."""
    others = tuple(each for each in ("a", "b", "c") if each != worker)
    assert bench.assign(num_tokens=num_tokens, hashes=[], exclude=others).decode == worker


@pytest.fixture
def warm(bench):
    """Three workers; `a` holds the prefix and has a long prompt to compute first."""
    made = bench(policy="kv")
    made.add(Role.BOTH, "a", "b", "c", engine=engine())
    made.store("a", PREFIX)
    busy(made, "a")
    return made


def test_a_prefix_is_pulled_by_an_idle_worker_when_its_holder_is_busy(warm):
    assignment = warm.assign(num_tokens=4000)
    assert assignment.decode in ("b", "c")
    assert (assignment.source, assignment.source_tokens) == ("a", 3840)
    assert assignment.cached_tokens == 0


def test_what_is_pulled_is_not_booked_as_work(warm):
    assignment = warm.assign(num_tokens=4000)
    assert warm.router.loads()[assignment.decode].queued_prefill_tokens == 160


def test_an_idle_holder_computes_the_rest_itself(bench):
    made = bench(policy="kv")
    made.add(Role.BOTH, "a", "b", engine=engine())
    made.store("a", PREFIX)
    assignment = made.assign(num_tokens=4000)
    assert (assignment.decode, assignment.source) == ("a", None)


def test_the_longest_prefix_is_the_source_and_of_equals_the_idler_one(bench):
    made = bench(policy="kv")
    made.add(Role.BOTH, "a", "b", "c", "d", engine=engine())
    made.store("a", PREFIX)
    made.store("b", PREFIX)
    made.store("c", range(30))
    for worker in ("a", "b"):
        made.assign(num_tokens=8000, hashes=[], exclude=tuple(set("abcd") - {worker}))
    made.assign(num_tokens=8000, hashes=[], exclude=("b", "c", "d"))
    assignment = made.assign(num_tokens=4000)
    assert assignment.decode in ("c", "d")
    assert assignment.source == "b"


@pytest.mark.parametrize(
    ("config", "transport"), [({"pull": False}, "mock"), ({"policy": "dynamo"}, "mock"), ({}, None)]
)
def test_nothing_is_pulled_where_it_is_switched_off_or_engines_cannot(bench, config, transport):
    made = bench(**{"policy": "kv"} | config)
    made.add(Role.BOTH, "a", "b", "c", engine=engine(transport))
    made.store("a", PREFIX)
    busy(made, "a")
    assert made.assign(num_tokens=4000).source is None


def test_a_worker_that_a_request_was_lost_on_is_no_source(warm):
    assert warm.assign(num_tokens=4000, exclude=("a",)).source is None


def test_a_slow_network_makes_computing_the_faster_way(bench):
    made = bench(policy="kv", pull_tokens_per_s=1000.0)
    made.add(Role.BOTH, "a", "b", "c", engine=engine())
    made.store("a", PREFIX)
    busy(made, "a", num_tokens=80_000)
    assignment = made.assign(num_tokens=4000)
    assert (assignment.decode != "a", assignment.source) == (True, None)


def test_a_prefill_worker_pulls_too(bench):
    made = bench(policy="kv")
    made.add(Role.PREFILL, "p0", "p1", engine=engine())
    made.add(Role.DECODE, "d", engine=engine())
    made.store("p0", PREFIX)
    made.assign(num_tokens=80_000, hashes=[], exclude=("p1",))
    assignment = made.assign(num_tokens=4000)
    assert (assignment.prefill, assignment.decode, assignment.source) == ("p1", "d", "p0")


def test_a_full_cache_is_avoided(bench):
    made = bench(policy="kv")
    made.add(Role.BOTH, "a", engine=engine(num_kv_blocks=100))
    made.add(Role.BOTH, "b", engine=engine(num_kv_blocks=10_000))
    placed = [made.assign(num_tokens=1024, hashes=[]) for _ in range(12)]
    for assignment in placed:
        made.router.prefill_done(assignment.request_id)
    assert sum(assignment.decode == "a" for assignment in placed) <= 3


def test_the_time_of_a_prompt_grows_pass_by_pass():
    timing = Timing(pull_tokens_per_s=350_000.0, pull_latency_ms=5.0)
    assert timing.prefill_ms(0) == 0.0
    assert timing.prefill_ms(1000) == pytest.approx(16.50142 + 15.18344 + 0.4209989)
    assert timing.prefill_ms(8192 + 1000) == pytest.approx(timing.prefill_ms(8192) + timing.prefill_ms(1000))
    assert timing.pull_ms(35_000) == pytest.approx(105.0)
    assert timing.cheapest(4000, 3840) == (timing.pull_ms(3840), 160)
    assert timing.cheapest(100, 32) == (0.0, 100)
