from collections import Counter

import pytest

from hpcserve.errors import Unavailable
from hpcserve.types import Role, WorkerState


def spread(bench, count, **fields):
    return Counter(bench.assign(hashes=[], **fields).decode for _ in range(count))


# --- policies ----------------------------------------------------------------------------------------------------


def test_round_robin_takes_turns_and_lets_newcomers_in(bench):
    made = bench(policy="round_robin")
    made.add(Role.BOTH, "a", "b", "c")
    assert [made.assign().decode for _ in range(6)] == ["a", "b", "c", "a", "b", "c"]
    made.add(Role.BOTH, "d")
    assert [made.assign().decode for _ in range(4)] == ["d", "a", "b", "c"]


def test_random_is_reproducible_and_reaches_everybody(bench):
    def choices(seed):
        made = bench(policy="random", seed=seed)
        made.add(Role.BOTH, "a", "b", "c")
        return [made.assign().decode for _ in range(60)]

    assert choices(1) == choices(1)
    assert choices(1) != choices(2)
    assert min(Counter(choices(1)).values()) > 8


def test_least_loaded_fills_up_evenly_and_refills_what_was_freed(bench):
    made = bench(policy="least_loaded")
    made.add(Role.BOTH, "a", "b", "c")
    placed = [made.assign() for _ in range(9)]
    assert Counter(a.decode for a in placed) == {"a": 3, "b": 3, "c": 3}
    freed = [a for a in placed if a.decode == "b"]
    for assignment in freed[:2]:
        made.router.release(assignment.request_id)
    assert [made.assign().decode for _ in range(2)] == ["b", "b"]


@pytest.mark.parametrize("policy", ["dynamo", "kv"])
def test_kv_sticks_to_the_worker_that_holds_the_prefix(bench, policy):
    made = bench(policy=policy)
    made.add(Role.BOTH, "a", "b", "c")
    made.store("b", range(9))
    for _ in range(20):
        assignment = made.assign()
        assert (assignment.decode, assignment.cached_tokens) == ("b", 288)
        made.router.release(assignment.request_id)


@pytest.mark.parametrize("policy", ["dynamo", "kv"])
def test_kv_leaves_the_prefix_when_its_worker_has_too_much_to_do(bench, policy):
    made = bench(policy=policy)
    made.add(Role.BOTH, "a", "b")
    made.store("b", range(9))
    placed = [made.assign().decode for _ in range(40)]
    assert placed[0] == "b"
    assert "a" in placed


@pytest.mark.parametrize("policy", ["dynamo", "kv"])
def test_kv_prefers_the_longer_overlap(bench, policy):
    made = bench(policy=policy)
    made.add(Role.BOTH, "a", "b", "c")
    made.store("a", range(2))
    made.store("c", range(6))
    assert made.assign().decode == "c"


@pytest.mark.parametrize("policy", ["dynamo", "kv"])
def test_kv_spreads_prompts_that_nobody_holds(bench, policy):
    made = bench(policy=policy)
    made.add(Role.BOTH, "a", "b", "c")
    assert spread(made, 9) == {"a": 3, "b": 3, "c": 3}


@pytest.mark.parametrize("policy", ["dynamo", "kv"])
def test_kv_breaks_ties_by_load_then_in_turn(bench, policy):
    made = bench(policy=policy)
    made.add(Role.BOTH, "a", "b", "c")
    released = []
    for _ in range(6):
        assignment = made.assign(hashes=[])
        released.append(assignment.decode)
        made.router.release(assignment.request_id)
    assert released == ["a", "b", "c", "a", "b", "c"]


# --- modes -------------------------------------------------------------------------------------------------------


def test_an_aggregated_pool_prefills_where_it_decodes(aggregated):
    assignments = [aggregated.assign(num_tokens=4000) for _ in range(12)]
    assert all(a.prefill is None for a in assignments)
    assert aggregated.router.stats().local_prefills == 12


def test_disaggregated_pools_keep_to_their_roles(disaggregated):
    assignments = [disaggregated.assign(num_tokens=4000, hashes=[]) for _ in range(24)]
    assert {a.prefill for a in assignments} == {"p0", "p1"}
    assert {a.decode for a in assignments} == {"d0", "d1", "d2"}
    assert disaggregated.router.stats().remote_prefills == 24


def test_a_mixed_fleet_uses_prefill_workers_for_decode_workers_only(bench, policy):
    made = bench(policy=policy)
    made.add(Role.PREFILL, "p")
    made.add(Role.DECODE, "d")
    made.add(Role.BOTH, "x")
    assignments = [made.assign(num_tokens=4000, hashes=[]) for _ in range(30)]
    assert {(a.prefill, a.decode) for a in assignments} == {("p", "d"), (None, "x")}


def test_workers_of_both_roles_prefill_for_decode_workers_where_there_are_no_others(bench):
    made = bench(policy="round_robin")
    made.add(Role.DECODE, "d")
    made.add(Role.BOTH, "x")
    assignments = [made.assign(num_tokens=4000) for _ in range(4)]
    assert {(a.prefill, a.decode) for a in assignments} == {("x", "d"), (None, "x")}


def test_prompts_below_the_threshold_prefill_on_their_decode_worker(disaggregated):
    assert disaggregated.assign(num_tokens=255, hashes=[]).prefill is None
    assert disaggregated.assign(num_tokens=256, hashes=[]).prefill is not None


def test_a_long_prompt_that_the_decode_worker_mostly_holds_prefills_there(bench):
    made = bench(policy="kv")
    made.add(Role.PREFILL, "p")
    made.add(Role.DECODE, "d0", "d1")
    made.store("d1", range(120))
    assignment = made.assign(num_tokens=4000)
    assert (assignment.prefill, assignment.decode, assignment.cached_tokens) == (None, "d1", 3840)


def test_the_prefill_worker_is_chosen_for_its_prefix(bench):
    made = bench(policy="kv")
    made.add(Role.PREFILL, "p0", "p1", "p2")
    made.add(Role.DECODE, "d")
    made.store("p2", range(50))
    assignment = made.assign(num_tokens=4000)
    assert (assignment.prefill, assignment.cached_tokens) == ("p2", 1600)


def test_least_loaded_prefill_is_measured_in_queued_tokens(bench):
    made = bench(policy="least_loaded")
    made.add(Role.PREFILL, "p0", "p1")
    made.add(Role.DECODE, "d")
    sizes = [8000, 1000, 1000, 1000]
    assert [made.assign(num_tokens=n, hashes=[]).prefill for n in sizes] == ["p0", "p1", "p1", "p1"]


# --- who may be chosen -------------------------------------------------------------------------------------------


def test_excluded_workers_are_taken_only_if_nothing_else_is_left(aggregated):
    assert {aggregated.assign(exclude=("a", "c")).decode for _ in range(9)} == {"b"}
    assert {aggregated.assign(exclude=("a", "b", "c")).decode for _ in range(40)} <= {"a", "b", "c"}


def test_with_all_prefill_workers_excluded_the_decode_worker_prefills(disaggregated):
    assignment = disaggregated.assign(num_tokens=4000, exclude=("p0", "p1", "d0"))
    assert assignment.prefill is None
    assert assignment.decode in ("d1", "d2")
    assert disaggregated.router.stats().prefill_fallbacks == 1


@pytest.mark.parametrize("state", [s for s in WorkerState if s is not WorkerState.READY])
def test_only_ready_workers_get_requests(aggregated, state):
    aggregated.add(Role.BOTH, "a", "c", state=state)
    assert {aggregated.assign().decode for _ in range(9)} == {"b"}


def test_a_draining_worker_keeps_its_bookings(bench):
    made = bench(policy="kv")
    made.add(Role.BOTH, "a")
    assignment = made.assign()
    made.add(Role.BOTH, "a", state=WorkerState.DRAINING)
    assert made.router.loads()["a"].num_requests == 1
    made.router.release(assignment.request_id)
    assert made.router.loads()["a"].num_requests == 0


def test_without_a_ready_prefill_worker_decode_workers_serve_alone(disaggregated):
    disaggregated.add(Role.PREFILL, "p0", "p1", state=WorkerState.DRAINING)
    assert disaggregated.assign(num_tokens=4000).prefill is None
    assert disaggregated.router.stats().prefill_fallbacks == 1


def test_without_a_ready_decode_worker_the_error_says_so(disaggregated):
    disaggregated.add(Role.DECODE, "d0", "d1", "d2", state=WorkerState.LOADING)
    with pytest.raises(Unavailable, match=r"no decode worker is READY \(0 of 3\)"):
        disaggregated.assign()
    assert disaggregated.router.stats().active_requests == 0


def test_without_any_worker_the_error_says_so(bench):
    with pytest.raises(Unavailable, match="has joined yet"):
        bench(policy="kv").assign()


def test_an_aggregated_pool_that_loads_is_named_as_such(bench):
    made = bench(policy="kv")
    made.add(Role.BOTH, "a", "b", state=WorkerState.LOADING)
    with pytest.raises(Unavailable, match=r"no worker is READY \(0 of 2\)"):
        made.assign()


def test_workers_about_to_end_are_avoided_while_there_are_others(bench, policy):
    made = bench(policy=policy)
    made.add(Role.BOTH, "ending", ends_at=1020.0)
    made.add(Role.BOTH, "lasting", ends_at=9000.0)
    assert {made.assign(now=1000.0).decode for _ in range(8)} == {"lasting"}
    assert {made.assign(now=900.0).decode for _ in range(40)} == {"ending", "lasting"}
    assert made.assign(now=1000.0, exclude=("lasting",)).decode == "ending"


def test_a_worker_that_changes_its_role_is_used_for_it(bench):
    made = bench(policy="round_robin")
    made.add(Role.PREFILL, "p")
    made.add(Role.DECODE, "d")
    made.add(Role.DECODE, "p")
    assert {made.assign(num_tokens=4000).decode for _ in range(4)} == {"p", "d"}


def test_stats_count_what_was_expected_of_the_caches(bench):
    made = bench(policy="kv")
    made.add(Role.BOTH, "a")
    made.store("a", range(5))
    made.assign()
    made.assign()
    stats = made.router.stats()
    assert stats.assignments == {"kv": 2}
    assert (stats.prompt_tokens, stats.expected_cached_tokens, stats.indexed_blocks) == (640, 320, 5)
    assert stats.active_requests == 2
