import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from hpcserve.router.events import EventLog
from hpcserve.router.index import PrefixIndex
from hpcserve.types import BlocksCleared, BlocksRemoved, BlocksStored, KvEventBatch, Role, WorkerInfo, WorkerState

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


def test_old_and_duplicate_batches_change_nothing_but_ask_for_a_snapshot(router):
    for old in (1, 2):
        router.apply(batch(1, BlocksStored([1])))
        router.apply(batch(2, BlocksRemoved([1])))
        assert not router.apply(batch(old, BlocksStored([7])))
        assert blocks(router) == set()
        assert not router.apply(batch(3, BlocksStored([3])))
        assert blocks(router) == {3}
        assert router.apply(snapshot(3, 3))
        router.remove_worker("a")
        router.update_worker(WorkerInfo(worker="a", pool="both", role=Role.BOTH, state=WorkerState.READY))


def test_batches_that_come_in_another_order_are_repaired(router):
    for seq in (1, 4, 3, 2):
        is_exact = router.apply(batch(seq, BlocksStored([seq])))
        assert is_exact == (seq == 1)
    assert router.apply(snapshot(4, 1, 2, 3, 4))
    assert blocks(router) == {1, 2, 3, 4}
    assert router.apply(batch(5, BlocksStored([5])))


def test_a_worker_started_again_under_its_id_is_known_exactly_after_a_snapshot(router):
    for seq in range(1, 9):
        router.apply(batch(seq, BlocksStored([seq])))
    assert not router.apply(batch(1, BlocksStored([100])))
    assert not router.apply(batch(2, BlocksStored([101])))
    assert router.apply(snapshot(2, 100, 101))
    assert blocks(router) == {100, 101}
    assert router.apply(batch(3, BlocksRemoved([100])))
    assert blocks(router) == {101}


def test_a_worker_started_again_that_begins_with_a_snapshot_is_asked_for_another(router):
    router.apply(batch(1, BlocksStored([1])))
    router.apply(batch(2, BlocksStored([2])))
    assert not router.apply(snapshot(0))
    assert router.apply(snapshot(0))
    assert blocks(router) == set()
    assert router.apply(batch(1, BlocksStored([100])))


def test_an_old_snapshot_taken_by_mistake_is_repaired_by_the_next(router):
    for seq in (1, 2, 3):
        router.apply(batch(seq, BlocksStored([seq])))
    router.apply(batch(2, BlocksStored([2])))  # repeated on its way
    assert router.apply(snapshot(1, 1)), "nobody can tell that it was sent before"
    assert not router.apply(batch(4, BlocksStored([4])))
    assert router.apply(snapshot(4, 1, 2, 3, 4))
    assert blocks(router) == {1, 2, 3, 4}


def test_a_worker_started_again_under_a_new_id_has_nothing_of_the_old_one(bench):
    made = bench(policy="kv")
    made.add(Role.BOTH, "a-1")
    made.store("a-1", PROMPT)
    made.add(Role.BOTH, "a-2")
    made.router.remove_worker("a-1")
    assert not made.router.apply(batch(2, BlocksStored([9]), worker="a-1")), "what was under way comes too late"
    assert made.router._index.overlaps(PROMPT) == {}
    made.store("a-2", PROMPT[:2])
    assert made.router._index.overlaps(PROMPT) == {"a-2": 2}


def test_events_before_a_worker_is_announced_are_made_up_for_by_a_snapshot(bench):
    made = bench(policy="kv")
    made.add(Role.BOTH, "b")
    assert not made.router.apply(batch(1, BlocksStored([1])))
    assert not made.router.apply(snapshot(1, 1))
    made.add(Role.BOTH, "a", state=WorkerState.STARTING)
    assert not made.router.apply(batch(2, BlocksStored([2])))
    assert made.router.apply(snapshot(2, 1, 2))
    assert blocks(made.router) == {1, 2}


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


def test_an_old_snapshot_without_a_gap_changes_nothing_and_the_newest_is_taken(router):
    router.apply(batch(1, BlocksStored([1])))
    router.apply(batch(2, BlocksStored([2])))
    assert not router.apply(snapshot(1, 1))
    assert blocks(router) == {1, 2}
    assert router.apply(snapshot(2, 1, 2))
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


class Sender:
    """A worker whose messages may be lost, repeated and overtaken on their way to an event log."""

    def __init__(self):
        self.index = PrefixIndex()
        self.log = EventLog(self.index)
        self.log.open("a")
        self.restart()

    def restart(self):
        self.held, self.seq, self.under_way = set(), 0, []

    def change(self, blocks, *, is_stored):
        self.seq += 1
        self.held = self.held | blocks if is_stored else self.held - blocks
        self.under_way.append(batch(self.seq, (BlocksStored if is_stored else BlocksRemoved)(list(blocks))))

    def deliver(self):
        is_exact = self.log.apply(self.under_way.pop(0))
        if not is_exact:
            self.under_way.append(snapshot(self.seq, *self.held))
        return is_exact

    def settle(self):
        for _ in range(5):
            if self.under_way:
                self.deliver()


accidents = st.one_of(
    st.tuples(st.sampled_from(["store", "remove", "arrive", "arrive"]), st.sets(st.integers(0, 9), max_size=4)),
    st.tuples(st.sampled_from(["deliver", "deliver", "lose", "repeat", "overtake", "restart"]), st.none()),
)


@given(st.lists(accidents, max_size=60))
@settings(max_examples=120, deadline=None)
def test_whatever_happens_to_messages_the_index_is_exact_again_soon_after(history):
    sender = Sender()
    for what, blocks in history:
        first = sender.under_way[:1]
        match what:
            case "store" | "remove":
                sender.change(blocks, is_stored=what == "store")
            case "arrive":
                sender.change(blocks, is_stored=True)
                sender.settle()
            case "restart":
                sender.restart()  # what was under way is lost with the connection
                sender.change({0}, is_stored=True)
                sender.deliver()
            case "lose":
                del sender.under_way[:1]
            case "repeat":
                sender.under_way += first
            case "overtake":
                sender.under_way = sender.under_way[1:] + first
            case "deliver" if first:
                sender.deliver()
    sender.under_way.clear()
    sender.change({5}, is_stored=True)
    sender.settle()
    sender.change({6}, is_stored=True)
    assert sender.deliver()
    assert sender.index.snapshot("a") == sender.held
