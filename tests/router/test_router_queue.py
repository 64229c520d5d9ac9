"""Requests that wait in the router until a worker has its hands free, and room."""

import pytest

from hpcserve.errors import Overloaded, Unavailable
from hpcserve.types import EngineInfo, RequestId, Role, WorkerState

NOW = 1000.0


def engine(num_kv_blocks=1000, **fields):
    return EngineInfo(
        engine="mock",
        model="m",
        block_size=32,
        num_kv_blocks=num_kv_blocks,
        max_model_len=100_000,
        kv_transport="mock",
        **fields,
    )


@pytest.fixture
def pair(bench):
    made = bench(policy="kv")
    made.add(Role.BOTH, "a", "b", engine=engine())
    return made


def submit(made, num_tokens=3200, now=NOW, **fields):
    request = made.request(num_tokens, hashes=[], **fields)
    made.router.submit(request, now)
    return request.request_id


def places(made, now=NOW):
    return {each.request_id: each.decode for each in made.router.place(now)}


def test_each_free_worker_is_given_one_and_the_next_when_its_prompt_is_computed(pair):
    ids = {submit(pair) for _ in range(4)}
    first = places(pair)
    assert sorted(first.values()) == ["a", "b"]
    assert places(pair) == {}
    assert pair.router.num_waiting == 2
    done = next(iter(first))
    pair.router.prefill_done(done)
    second = places(pair)
    assert list(second.values()) == [first[done]]
    assert set(first) | set(second) < ids


def test_a_worker_whose_sequences_are_all_taken_gets_nothing_more_until_one_ends(bench):
    made = bench(policy="kv")
    made.add(Role.BOTH, "a", "b", engine=engine(max_num_seqs=2))
    running = []
    for _ in range(4):
        submit(made, num_tokens=320)
        running += places(made)
        for request_id in running:
            made.router.prefill_done(request_id)
    assert len(running) == 4
    waiting = submit(made, num_tokens=320)
    assert places(made) == {}
    made.router.release(running[0])
    assert list(places(made)) == [waiting]


def test_a_release_makes_room_too(pair):
    for _ in range(3):
        submit(pair)
    first = places(pair)
    pair.router.release(next(iter(first)))
    assert len(places(pair)) == 1


def test_who_hangs_up_while_waiting_is_never_placed(pair):
    ids = [submit(pair) for _ in range(4)]
    first = places(pair)
    left = [each for each in ids if each not in first]
    pair.router.release(left[0])
    for each in first:
        pair.router.prefill_done(each)
    assert list(places(pair)) == [left[1]]


def test_only_kv_lets_requests_wait(bench, policy):
    made = bench(policy=policy)
    made.add(Role.BOTH, "a", "b", engine=engine())
    for _ in range(6):
        submit(made)
    assert len(places(made)) == (2 if policy == "kv" else 6)


def test_a_prompt_waits_for_room_in_a_cache(bench):
    made = bench(policy="kv")
    made.add(Role.BOTH, "a", engine=engine(num_kv_blocks=300))
    first, second = submit(made, 32 * 200), submit(made, 32 * 201)
    assert list(places(made)) == [first]
    made.router.prefill_done(first)
    assert places(made) == {}
    made.router.release(first)
    assert list(places(made)) == [second]


def test_a_prompt_that_fits_into_no_cache_is_placed_where_nothing_else_is(bench):
    made = bench(policy="kv")
    made.add(Role.BOTH, "a", engine=engine(num_kv_blocks=100))
    submit(made, 32 * 200)
    assert len(places(made)) == 1


def test_a_large_prompt_gets_its_room_though_small_ones_keep_coming(bench):
    made = bench(policy="kv")
    made.add(Role.BOTH, "a", engine=engine(num_kv_blocks=100))
    running = [submit(made, 320) for _ in range(1)]
    assert len(places(made)) == 1
    large = submit(made, 32 * 90)
    for second in range(60):
        now = NOW + second
        for each in running:
            made.router.prefill_done(each)
        running.append(submit(made, 320, now=now))
        placed = places(made, now)
        if large in placed:
            break
        if len(running) > 3:
            made.router.release(running.pop(0))
    else:
        pytest.fail("it never got room")


def test_workers_that_are_lost_leave_the_waiting_waiting(pair):
    for _ in range(3):
        submit(pair)
    places(pair)
    pair.router.remove_worker("a")
    pair.router.remove_worker("b")
    assert places(pair) == {}
    assert pair.router.num_waiting == 1
    pair.add(Role.BOTH, "c", engine=engine())
    assert list(places(pair).values()) == ["c"]


def test_nobody_waits_where_no_worker_is_ready(bench):
    made = bench(policy="kv")
    made.add(Role.BOTH, "a", state=WorkerState.LOADING)
    with pytest.raises(Unavailable):
        submit(made)


def test_a_request_that_was_lost_goes_first_and_elsewhere(pair):
    for _ in range(4):
        submit(pair)
    (lost, worker), _ = places(pair).items()
    for load in ("a", "b"):
        assert pair.router.loads()[load].num_requests == 1
    pair.router.submit(pair.request(3200, hashes=[], request_id=RequestId(lost), exclude=(worker,)), NOW)
    other = "b" if worker == "a" else "a"
    assert lost not in places(pair), "the worker it was lost on is free, but not for it"
    for each in [r for r, load in pair.router._placed.items() if load.decode == other]:
        pair.router.prefill_done(each)
    assert places(pair)[lost] == other


def test_over_the_bound_requests_are_refused_and_old_ones_dropped(bench):
    made = bench(policy="kv", queue={"max_requests": 2, "max_wait_s": 5.0})
    made.add(Role.BOTH, "a", engine=engine())
    submit(made)
    places(made)
    waiting = [submit(made, now=NOW), submit(made, now=NOW + 3)]
    with pytest.raises(Overloaded):
        submit(made)
    assert made.router.expire(NOW + 6) == waiting[:1]
    assert made.router.num_waiting == 1


def test_prefill_workers_get_one_prompt_at_a_time_and_short_ones_do_not_wait(bench):
    made = bench(policy="kv")
    made.add(Role.PREFILL, "p", engine=engine())
    made.add(Role.DECODE, "d0", "d1", engine=engine())
    first, second = submit(made), submit(made)
    (placed,) = made.router.place(NOW)
    assert (placed.prefill, placed.decode in ("d0", "d1")) == ("p", True)
    short = submit(made, 100)
    (local,) = made.router.place(NOW)
    assert (local.request_id, local.prefill) == (short, None)
    made.router.prefill_done(placed.request_id)
    (later,) = made.router.place(NOW)
    assert {placed.request_id, later.request_id} == {first, second}


def test_short_prompts_that_come_together_are_spread_over_the_decode_workers(bench):
    made = bench(policy="kv")
    made.add(Role.PREFILL, "p", engine=engine())
    made.add(Role.DECODE, "d0", "d1", engine=engine())
    for _ in range(2):
        made.assign(200, [], exclude=("d0",))  # so that at first d0 is better for all of them
    for _ in range(8):
        submit(made, 200)
    decode = list(places(made).values())
    assert len(decode) == 8
    assert decode.count("d1") >= 2


def test_without_prefill_workers_the_decode_workers_compute_and_that_is_counted(bench):
    made = bench(policy="kv")
    made.add(Role.DECODE, "d0", engine=engine())
    submit(made)
    (placed,) = made.router.place(NOW)
    assert (placed.decode, placed.prefill) == ("d0", None)
    assert made.router.stats().prefill_fallbacks == 1


def test_equal_workers_take_turns(pair):
    seen = []
    for _ in range(4):
        request = submit(pair)
        seen += places(pair).values()
        pair.router.release(request)
    assert seen in (["a", "b", "a", "b"], ["b", "a", "b", "a"])


def test_engines_are_told_what_was_asked_for_before_under_kv_only(bench, policy):
    made = bench(policy=policy)
    made.add(Role.BOTH, "a", "b", engine=engine())
    made.store("a", range(50))
    made.router.submit(made.request(3200, hashes=range(100)), NOW)
    (placed,) = made.router.place(NOW)
    assert placed.reused_tokens == (1600 if policy == "kv" else 0)


@pytest.mark.parametrize("config", [{"policy": "round_robin"}, {"policy": "kv", "queue": {"order": "fcfs"}}])
def test_who_came_first_is_placed_first_however_long_it_is(bench, config):
    made = bench(**config)
    made.add(Role.BOTH, "a", "b", engine=engine())
    ids = [submit(made, num_tokens) for num_tokens in (9000, 6400, 100, 200)]
    placed = list(places(made))
    assert set(placed) == set(ids[: len(placed)])
    assert len(placed) >= 2
    if config["policy"] == "round_robin":
        assert placed == ids
