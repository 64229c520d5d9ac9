from collections import Counter

import pytest

from hpcserve.types import Caller, Role, WorkerState

WORKERS = [f"w{i}" for i in range(8)]


@pytest.fixture
def made(bench):
    made = bench(policy="session")
    made.add(Role.BOTH, *WORKERS)
    return made


def home(made, session, tenant=""):
    """Where a session's request goes if nothing else is there."""
    assignment = made.assign(caller=Caller(session=session, tenant=tenant))
    made.router.release(assignment.request_id)
    return assignment.decode


def test_a_session_stays_on_its_worker_and_sessions_are_spread(made):
    homes = {f"s{i}": home(made, f"s{i}") for i in range(400)}
    assert all(home(made, session) == worker for session, worker in homes.items())
    counts = Counter(homes.values())
    assert set(counts) == set(WORKERS)
    assert max(counts.values()) < 2 * min(counts.values())


def test_a_lost_worker_moves_only_its_own_sessions(made):
    homes = {f"s{i}": home(made, f"s{i}") for i in range(200)}
    made.router.remove_worker("w3")
    after = {session: home(made, session) for session in homes}
    assert {s for s in homes if homes[s] != after[s]} == {s for s in homes if homes[s] == "w3"}
    assert len({after[s] for s in homes if homes[s] == "w3"}) > 3
    made.add(Role.BOTH, "w3")
    assert {session: home(made, session) for session in homes} == homes


def test_two_routers_agree(bench, made):
    other = bench(policy="session")
    other.add(Role.BOTH, *reversed(WORKERS))
    assert [home(made, f"s{i}") for i in range(50)] == [home(other, f"s{i}") for i in range(50)]


def test_tenants_with_the_same_name_for_a_session_do_not_share_it(made):
    assert len({home(made, "chat", tenant=f"t{i}") for i in range(40)}) > 4


def test_an_overloaded_home_is_left_for_the_sessions_next_one_until_there_is_room(made):
    first = made.assign(caller=Caller(session="s"))
    open_ids = [first.request_id]
    placed = [first.decode]
    for _ in range(31):
        assignment = made.assign(caller=Caller(session="s"))
        open_ids.append(assignment.request_id)
        placed.append(assignment.decode)
    counts = Counter(placed)
    assert counts[first.decode] == max(counts.values())
    assert max(counts.values()) <= 1.25 * 4 + 2
    for request_id in open_ids:
        made.router.release(request_id)
    assert home(made, "s") == first.decode


def test_a_home_that_is_not_ready_is_passed_over(made):
    worker = home(made, "s")
    made.add(Role.BOTH, worker, state=WorkerState.DRAINING)
    assert home(made, "s") != worker
    made.add(Role.BOTH, worker)
    assert home(made, "s") == worker


def test_a_session_keeps_its_prefill_worker_with_one_prompt_queued_there(bench):
    made = bench(policy="session", min_remote_prefill_tokens=1)
    made.add(Role.PREFILL, "p0", "p1", "p2", "p3")
    made.add(Role.DECODE, "d0", "d1")
    placed = [made.assign(num_tokens=1000, caller=Caller(session="s")).prefill for _ in range(8)]
    assert placed[0] == placed[1]
    assert len(set(placed)) > 2


def test_requests_of_no_session_are_spread(made):
    assert Counter(made.assign().decode for _ in range(64)).keys() == set(WORKERS)


def test_the_seed_deals_sessions_anew(bench, made):
    other = bench(policy="session", seed=1)
    other.add(Role.BOTH, *WORKERS)
    assert [home(made, f"s{i}") for i in range(50)] != [home(other, f"s{i}") for i in range(50)]
