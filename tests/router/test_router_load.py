import contextlib

import hypothesis.strategies as st
from hypothesis import HealthCheck, given, settings

from hpcserve.errors import Unavailable
from hpcserve.router.load import LoadBook
from hpcserve.types import LoadReport, Role, WorkerState

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
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
