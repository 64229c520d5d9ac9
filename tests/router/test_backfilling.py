"""Requests of batches fill what online ones leave: under every policy, and without being refused for waiting."""

import pytest

from hpcserve.router.backfill import BUSY_PASS_TOKENS, QUIET_S, BackfillRule, Occupied
from hpcserve.types import EngineInfo, LoadReport, Role

NOW = 1000.0


def engine(**fields):
    return EngineInfo(
        **{
            "engine": "mock",
            "model": "m",
            "block_size": 32,
            "num_kv_blocks": 1000,
            "max_model_len": 100_000,
            "max_num_seqs": 8,
            "max_batched_tokens": 8192,
            **fields,
        }
    )


@pytest.fixture
def trio(bench):
    made = bench(policy="kv")
    made.add(Role.BOTH, "a", "b", "c", engine=engine())
    return made


def submit(made, num_tokens=320, now=NOW, priority=100, **fields):
    request = made.request(num_tokens, hashes=[], priority=priority, **fields)
    made.router.submit(request, now)
    return request.request_id


def places(made, now=NOW):
    return {each.request_id: each.decode for each in made.router.place(now)}


def compute(made, placed):
    for each in placed:
        made.router.prefill_done(each)


def test_online_requests_go_before_those_of_batches_that_came_first(trio):
    offline = [submit(trio, 3200) for _ in range(3)]
    online = [submit(trio, 3200, priority=0) for _ in range(3)]
    placed = list(places(trio))
    assert set(placed[:3]) == set(online)
    assert set(placed[3:]) < set(offline)


def test_nothing_of_a_batch_starts_while_an_online_request_waits_and_it_goes_on_after(trio):
    online = [submit(trio, 3200, priority=0) for _ in range(5)]
    first = places(trio)
    offline = submit(trio)
    compute(trio, list(first)[:1])
    second = places(trio)
    assert set(second) < set(online)
    assert trio.router.num_waiting == 1
    compute(trio, [*first, *second])
    last = set(online) - set(first) - set(second)
    assert list(places(trio)) == [*last, offline]


def serve(made, num, now=NOW, **fields):
    """Have some online requests answered, one after the other."""
    for _ in range(num):
        request_id = submit(made, priority=0, now=now, **fields)
        compute(made, places(made, now))
        made.router.release(request_id)


def test_as_many_workers_as_online_requests_need_are_kept_free_of_batches(trio):
    serve(trio, 1, num_tokens=32)
    for _ in range(30):
        submit(trio, 32)
    compute(trio, placed := places(trio))
    assert len(set(placed.values())) == 2
    serve(trio, 4, NOW + 1, num_tokens=3200)
    for each in placed:
        trio.router.release(each)
    assert len(set(places(trio, NOW + 1).values())) == 1


def test_where_online_requests_need_all_workers_one_of_them_takes_few_of_a_batch(trio):
    serve(trio, 500, num_tokens=3200)
    for _ in range(30):
        submit(trio, 32)
    for _ in range(5):
        compute(trio, places(trio))
    assert trio.total("num_requests") == 1
    for _ in range(5):
        compute(trio, places(trio, NOW + QUIET_S + 1))
    assert trio.total("num_requests") == 18


def test_with_online_traffic_prompts_of_batches_share_a_small_pass_and_without_a_whole_one(bench):
    made = bench(policy="kv")
    made.add(Role.BOTH, "a", engine=engine(max_num_seqs=100))
    submit(made, priority=0)
    compute(made, places(made))
    for _ in range(30):
        submit(made, 256)
    assert len(places(made)) == BUSY_PASS_TOKENS // 256
    assert len(places(made, NOW + QUIET_S + 1)) == 28


def test_a_share_of_each_workers_sequences_stays_free(policy, bench):
    made = bench(policy=policy)
    made.add(Role.BOTH, "a", "b", engine=engine())
    ids = [submit(made, 32) for _ in range(20)]
    for _ in range(20):
        compute(made, places(made))
    assert made.total("num_requests") == 12
    made.router.release(ids[0])
    assert len(places(made)) == 1


def test_a_cache_that_fills_up_is_left_to_online_requests(trio):
    for worker in ("a", "b", "c"):
        trio.router.report(worker, LoadReport(num_running=1, kv_usage=0.8))
    submit(trio)
    assert places(trio) == {}
    trio.router.report("b", LoadReport(num_running=1, kv_usage=0.5))
    assert list(places(trio).values()) == ["b"]


def test_waiting_is_no_overload_for_batches(bench):
    made = bench(policy="kv", queue={"max_requests": 2, "max_wait_s": 5.0})
    made.add(Role.BOTH, "a", engine=engine())
    submit(made, 9000, priority=0)
    places(made)
    for _ in range(10):
        submit(made)
    assert made.router.expire(NOW + 1000) == []
    assert made.router.num_waiting == 0
    assert made.router.num_backfilling == 10


def test_who_gives_up_waits_no_more(trio):
    submit(trio, 3200, priority=0)
    places(trio)
    for worker in ("a", "b", "c"):
        trio.router.report(worker, LoadReport(num_running=1, kv_usage=0.9))
    gone = submit(trio)
    trio.router.release(gone)
    assert trio.router.num_backfilling == 0


def test_tenants_take_turns_in_batches_too(bench):
    from hpcserve.types import Caller

    made = bench(policy="round_robin")
    made.add(Role.BOTH, "a", engine=engine(max_num_seqs=4))
    submit(made, 9000, priority=0)
    placed = places(made)
    many = [submit(made, caller=Caller(tenant="many")) for _ in range(6)]
    few = submit(made, caller=Caller(tenant="few"))
    compute(made, placed)
    turns = list(places(made, NOW + QUIET_S + 1))
    assert few in turns[:2]
    assert turns[0] in (many[0], few)


def test_split_pools_are_backfilled_by_prompts_and_by_sequences(bench):
    made = bench(policy="kv")
    made.add(Role.PREFILL, "p", engine=engine())
    made.add(Role.DECODE, "d", engine=engine())
    ids = [submit(made, 640) for _ in range(10)]
    for _ in range(10):
        compute(made, places(made))
    assert made.router.loads()["d"].num_requests == 6
    made.router.release(ids[0])
    assert len(places(made)) == 1


def test_an_idle_worker_takes_a_prompt_of_any_length():
    assert BackfillRule().has_room(engine(), Occupied(0, 0, 0, 0.0), 100_000, is_quiet=False)
