import contextlib
from math import inf, nan

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings

from hpcserve.errors import Unavailable
from hpcserve.router.load import FADES_AFTER_S, HALF_LIFE_S, MOST_REQUESTS, MOST_TOKENS, LoadBook
from hpcserve.types import EngineInfo, LoadReport, Role, WorkerState

BLOCK = 32
ENGINE = EngineInfo(
    engine="mock", model="m", block_size=BLOCK, num_kv_blocks=1000, max_model_len=32000, max_num_seqs=64
)
FIELDS = ("num_requests", "queued_prefill_tokens", "active_blocks")


def test_every_assignment_released_leaves_nothing_booked(aggregated, disaggregated):
    for bench in (aggregated, disaggregated):
        made = [bench.assign(num_tokens=n) for n in (1, 31, 32, 33, 5000) * 4]
        assert bench.total("num_requests") >= len(made)
        for assignment in made:
            bench.router.release(assignment.request_id)
        assert [bench.total(field) for field in FIELDS] == [0, 0, 0]
        assert bench.router.stats().active_requests == 0


def test_a_computed_prompt_queues_no_more_but_keeps_its_blocks(bench):
    made = bench(policy="kv")
    made.add(Role.BOTH, "a")
    assignment = made.assign(num_tokens=100)
    assert made.router.loads()["a"].queued_prefill_tokens == 100
    made.router.prefill_done(assignment.request_id)
    load = made.router.loads()["a"]
    assert (load.queued_prefill_tokens, load.active_blocks, load.num_requests) == (0, 4, 1)


def test_a_prefill_worker_is_free_of_a_request_once_its_prompt_is_computed(bench):
    made = bench(policy="kv")
    made.add(Role.PREFILL, "p")
    made.add(Role.DECODE, "d")
    assignment = made.assign(num_tokens=1000)
    assert made.router.loads()["p"].queued_prefill_tokens == 1000
    assert made.router.loads()["d"].queued_prefill_tokens == 0
    made.router.prefill_done(assignment.request_id)
    assert made.router.loads()["p"].num_requests == 0
    assert made.router.loads()["d"].num_requests == 1


def test_cached_blocks_are_booked_neither_as_work_nor_as_memory(bench):
    made = bench(policy="kv")
    made.add(Role.BOTH, "a")
    made.store("a", range(8))
    assignment = made.assign(num_tokens=320)
    assert assignment.cached_tokens == 256
    load = made.router.loads()["a"]
    assert (load.queued_prefill_tokens, load.active_blocks) == (64, 2)


def test_a_fully_cached_prompt_still_computes_one_token(bench):
    made = bench(policy="kv")
    made.add(Role.BOTH, "a")
    made.store("a", range(10))
    assert made.assign(num_tokens=320).cached_tokens == 319


def test_a_removed_worker_takes_its_bookings_along(bench):
    made = bench(policy="kv")
    made.add(Role.PREFILL, "p")
    made.add(Role.DECODE, "d")
    assignment = made.assign(num_tokens=1000)
    made.router.remove_worker("p")
    assert set(made.router.loads()) == {"d"}
    made.router.prefill_done(assignment.request_id)
    made.router.release(assignment.request_id)
    assert [made.total(field) for field in FIELDS] == [0, 0, 0]


def test_assigning_a_request_again_moves_its_booking(bench):
    made = bench(policy="round_robin")
    made.add(Role.BOTH, "a", "b")
    request = made.request()
    first = made.router.assign(request, 0.0)
    second = made.router.assign(request, 0.0)
    assert {first.decode, second.decode} == {"a", "b"}
    assert made.router.loads()[first.decode].num_requests == 0
    assert made.total("num_requests") == 1


def test_load_that_an_earlier_head_placed_counts_through_reports(bench):
    made = bench(policy="least_loaded")
    made.add(Role.BOTH, "a", "b")
    made.router.report("a", LoadReport(num_running=3, num_waiting=2, waiting_tokens=900))
    assert [made.assign().decode for _ in range(5)] == ["b"] * 5
    load = made.router.loads()["a"]
    assert (load.unbooked_requests, load.unbooked_prefill_tokens) == (5, 900)
    made.router.report("a", LoadReport())
    assert made.assign().decode == "a"


def test_a_report_of_what_was_placed_here_is_not_counted_twice(bench):
    made = bench(policy="least_loaded")
    made.add(Role.BOTH, "a")
    made.assign(num_tokens=100)
    made.router.report("a", LoadReport(num_waiting=1, waiting_tokens=100))
    load = made.router.loads()["a"]
    assert (load.unbooked_requests, load.unbooked_prefill_tokens) == (0, 0)


@pytest.fixture
def pair(bench):
    """Two workers, of which one tells what it likes."""
    made = bench(policy="least_loaded")
    made.add(Role.BOTH, "liar", "honest", engine=ENGINE)
    return made


def share_of(bench, worker, *, now, num_requests=20):
    """Return what share of some requests, each of which ends when the next comes, a worker gets."""
    chosen = []
    for _ in range(num_requests):
        assignment = bench.assign(now=now)
        chosen.append(assignment.decode)
        bench.router.release(assignment.request_id)
    return chosen.count(worker) / num_requests


ABSURD = LoadReport(num_running=10**9, num_waiting=10**9, waiting_tokens=10**15)
NONSENSE = [
    LoadReport(num_running=-5, num_waiting=-(10**9), waiting_tokens=-1),
    LoadReport(num_running=-(10**9), num_waiting=3, waiting_tokens=-(10**12)),
    LoadReport(kv_usage=nan, prefill_tokens_per_s=nan, decode_tokens_per_s=-inf, pull_latency_ms=nan),
    LoadReport(num_running=inf, num_waiting=nan, waiting_tokens=nan, kv_usage=inf),
    ABSURD,
]


def test_a_load_is_believed_as_far_as_the_engine_has_room(pair):
    pair.router.report("liar", ABSURD)
    load = pair.router.loads()["liar"]
    assert (load.unbooked_requests, load.unbooked_prefill_tokens) == (64, 1000 * BLOCK)


def test_an_engine_that_claims_room_for_everything_is_bounded_all_the_same(bench):
    made = bench(policy="least_loaded")
    made.add(Role.BOTH, "a", engine=msgspec.structs.replace(ENGINE, max_num_seqs=-1, num_kv_blocks=10**12))
    made.router.report("a", ABSURD)
    load = made.router.loads()["a"]
    assert (load.unbooked_requests, load.unbooked_prefill_tokens) == (MOST_REQUESTS, MOST_TOKENS)


@pytest.mark.parametrize("policy", ["dynamo", "kv"])
@pytest.mark.parametrize("num_kv_blocks", [-1, 0, 10**12])
def test_an_engine_that_claims_an_absurd_cache_does_not_attract_all_load(bench, policy, num_kv_blocks):
    made = bench(policy=policy)
    made.add(Role.BOTH, "liar", engine=msgspec.structs.replace(ENGINE, num_kv_blocks=num_kv_blocks))
    made.add(Role.BOTH, "honest", engine=ENGINE)
    chosen = [made.assign(hashes=[]).decode for _ in range(20)]
    assert chosen.count("honest") >= 4, "every fifth at least"


def test_a_load_that_never_falls_is_avoided_at_first_and_then_gets_its_share(pair):
    for now in range(0, 1200, 10):
        pair.router.report("liar", ABSURD)
        share = share_of(pair, "liar", now=now)
        if now < 300:
            assert share == 0.0
    assert share == 0.5


def test_a_load_fades_also_if_no_report_comes_any_more(pair):
    share_of(pair, "liar", now=0.0)
    pair.router.report("liar", ABSURD)
    assert share_of(pair, "liar", now=FADES_AFTER_S) == 0.0
    assert pair.router.loads()["liar"].unbooked_requests == 64
    share_of(pair, "liar", now=FADES_AFTER_S + HALF_LIFE_S)
    assert pair.router.loads()["liar"].unbooked_requests == 32
    assert share_of(pair, "liar", now=FADES_AFTER_S + 8 * HALF_LIFE_S) == 0.5


def test_a_load_that_was_gone_in_between_counts_in_full_again(pair):
    pair.router.report("liar", ABSURD)
    for now, report in ((0.0, ABSURD), (1000.0, LoadReport()), (1001.0, ABSURD)):
        share_of(pair, "liar", now=now)
        pair.router.report("liar", report)
    assert pair.router.loads()["liar"].unbooked_requests == 64


@pytest.mark.parametrize("nonsense", NONSENSE)
def test_nonsense_neither_attracts_load_nor_takes_from_what_is_booked(pair, nonsense):
    for now in range(40):
        pair.router.report("liar", nonsense)
        pair.assign(now=now)
    loads = pair.router.loads()
    assert loads["liar"].num_requests <= 20
    assert all(getattr(load, field) >= 0 for load in loads.values() for field in (*FIELDS, "unbooked_requests"))


@pytest.mark.parametrize("nonsense", NONSENSE)
@pytest.mark.parametrize("policy", ["least_loaded", "dynamo", "kv"])
def test_a_worker_that_talks_nonsense_does_not_keep_others_from_being_chosen(bench, policy, nonsense):
    made = bench(policy=policy)
    made.add(Role.BOTH, "liar", "honest", engine=ENGINE)
    chosen = []
    for now in range(0, 2000, 20):
        made.router.report("liar", nonsense)
        made.router.report("honest", LoadReport(num_running=made.router.loads()["honest"].num_requests))
        assignments = [made.assign(hashes=range(100 * now + i, 100 * now + i + 10), now=now) for i in (0, 20)]
        chosen += [assignment.decode for assignment in assignments]
        for assignment in assignments:
            made.router.release(assignment.request_id)
    assert chosen[-20:].count("liar") == 10, "in the end it is one of two"


ids = st.sampled_from(["r0", "r1", "r2", "r3"])
workers = st.sampled_from(["a", "b", "p", "d"])
steps = st.one_of(
    st.tuples(st.just("assign"), ids, st.integers(1, 4000)),
    st.tuples(st.just("prefill_done"), ids),
    st.tuples(st.just("release"), ids),
    st.tuples(st.just("remove"), workers),
    st.tuples(st.just("drain"), workers),
    st.tuples(st.just("add"), workers),
    st.tuples(st.just("report"), workers, st.integers(0, 9), st.integers(0, 9000)),
)
ROLES = {"a": Role.BOTH, "b": Role.BOTH, "p": Role.PREFILL, "d": Role.DECODE}


@given(history=st.lists(steps, max_size=40), policy=st.sampled_from(["random", "round_robin", "least_loaded", "kv"]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_loads_are_never_negative_and_end_at_zero(bench, history, policy):
    made = bench(policy=policy)
    for step in history:
        match step:
            case ("assign", request_id, tokens):
                with contextlib.suppress(Unavailable):
                    made.assign(num_tokens=tokens, request_id=request_id)
            case ("prefill_done", request_id):
                made.router.prefill_done(request_id)
            case ("release", request_id):
                made.router.release(request_id)
            case ("remove", worker):
                made.router.remove_worker(worker)
            case ("drain", worker):
                made.add(ROLES[worker], worker, state=WorkerState.DRAINING)
            case ("add", worker):
                made.add(ROLES[worker], worker)
            case ("report", worker, running, tokens):
                made.router.report(worker, LoadReport(num_running=running, waiting_tokens=tokens))
        for load in made.router.loads().values():
            assert all(getattr(load, field) >= 0 for field in (*FIELDS, "unbooked_requests"))
    for request_id in ("r0", "r1", "r2", "r3"):
        made.router.release(request_id)
    assert [made.total(field) for field in FIELDS] == [0, 0, 0]


def test_the_number_of_queued_prompts_is_kept_as_they_come_and_go():
    book = LoadBook()
    book.open("a")
    book.book("a", "r0", prefill_tokens=100, blocks=1)
    book.book("a", "r1", prefill_tokens=0, blocks=1)
    book.book("a", "r2", prefill_tokens=50, blocks=1)
    assert book.of("a").num_queued == 2
    book.book("a", "r2", prefill_tokens=70, blocks=1)
    assert book.of("a").num_queued == 2
    book.prefill_done("a", "r0")
    book.prefill_done("a", "r0")
    assert book.of("a").num_queued == 1
    book.release("a", "r0")
    book.release("a", "r2")
    assert book.of("a").num_queued == 0


def test_releasing_unknown_ids_is_harmless():
    book = LoadBook()
    book.open("a")
    book.release("a", "ghost")
    book.release("nobody", "ghost")
    book.prefill_done("a", "ghost")
    book.report("nobody", LoadReport())
    assert book.of("a").num_requests == 0
