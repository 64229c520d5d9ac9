import pytest

from hpcserve.types import BlocksCleared, BlocksRemoved, BlocksStored, KvEventBatch, Role, WorkerState

PROMPT = [1, 2, 3, 4]


def batch(seq, *events, worker="a", is_snapshot=False):
    return KvEventBatch(worker=worker, seq=seq, events=list(events), is_snapshot=is_snapshot)


def snapshot(seq, *hashes):
    return batch(seq, BlocksCleared(), BlocksStored(list(hashes)), is_snapshot=True)


@pytest.fixture
def router(bench):
    made = bench(policy="kv")
    made.add(Role.BOTH, "a", "b")
    return made.router


def blocks(router):
    return router._index.snapshot("a")


@pytest.mark.parametrize("first", [0, 1])
def test_batches_in_order_are_applied(router, first):
    assert router.apply(batch(first, BlocksStored([1, 2])))
    assert router.apply(batch(first + 1, BlocksRemoved([2]), BlocksStored([3])))
    assert blocks(router) == {1, 3}


def test_old_and_duplicate_batches_are_ignored(router):
    router.apply(batch(1, BlocksStored([1])))
    router.apply(batch(2, BlocksRemoved([1])))
    assert router.apply(batch(1, BlocksStored([1])))
    assert router.apply(batch(2, BlocksStored([7])))
    assert blocks(router) == set()


def test_a_gap_asks_for_a_snapshot_until_one_comes(router):
    router.apply(batch(1, BlocksStored([1])))
    assert not router.apply(batch(3, BlocksStored([3])))
    assert not router.apply(batch(4, BlocksStored([4])))
    assert blocks(router) == {1, 3, 4}, "best effort meanwhile"
    assert router.apply(snapshot(4, 1, 2, 4))
    assert blocks(router) == {1, 2, 4}
    assert router.apply(batch(5, BlocksStored([5])))
    assert blocks(router) == {1, 2, 4, 5}
    assert router.stats().event_gaps == 2


def test_a_worker_met_in_mid_life_asks_for_a_snapshot(router):
    assert not router.apply(batch(500, BlocksStored([1])))
    assert router.apply(snapshot(500, 1, 2))
    assert blocks(router) == {1, 2}


def test_a_snapshot_that_misses_applied_batches_does_not_close_the_gap(router):
    router.apply(batch(1, BlocksStored([1])))
    router.apply(batch(3, BlocksStored([3])))
    assert not router.apply(snapshot(2, 1, 2))
    assert blocks(router) == {1, 3}
    assert router.apply(snapshot(3, 1, 2, 3))


def test_an_old_snapshot_without_a_gap_changes_nothing(router):
    router.apply(batch(1, BlocksStored([1])))
    router.apply(batch(2, BlocksStored([2])))
    assert router.apply(snapshot(1, 1))
    assert blocks(router) == {1, 2}


def test_clearing_forgets_one_worker_only(router):
    router.apply(batch(1, BlocksStored(PROMPT)))
    router.apply(batch(1, BlocksStored(PROMPT), worker="b"))
    router.apply(batch(2, BlocksCleared(), BlocksStored([9])))
    assert blocks(router) == {9}
    assert router._index.overlaps(PROMPT) == {"b": 4}


def test_events_of_unknown_and_removed_workers_are_dropped(router):
    assert not router.apply(batch(1, BlocksStored([1]), worker="stranger"))
    router.apply(batch(1, BlocksStored([1])))
    router.remove_worker("a")
    assert not router.apply(batch(2, BlocksStored([2])))
    assert router.stats().indexed_blocks == 0


def test_a_failed_worker_is_forgotten_with_its_blocks(bench):
    made = bench(policy="kv")
    made.add(Role.BOTH, "a", "b")
    made.store("a", PROMPT)
    made.add(Role.BOTH, "a", state=WorkerState.FAILED)
    assert "a" not in made.router.loads()
    assert made.router.stats().indexed_blocks == 0
