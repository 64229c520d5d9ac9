import hypothesis.strategies as st
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hpcserve.router.index import PrefixIndex

workers = st.sampled_from([f"w{i}" for i in range(5)])
hashes = st.lists(st.integers(0, 30), max_size=12)


class IndexAgainstSets(RuleBasedStateMachine):
    """The index answers what one set of hashes a worker would."""

    def __init__(self):
        super().__init__()
        self.index = PrefixIndex()
        self.sets = {}

    @rule(worker=workers, blocks=hashes)
    def store(self, worker, blocks):
        self.index.store(worker, blocks)
        self.sets.setdefault(worker, set()).update(blocks)

    @rule(worker=workers, blocks=hashes)
    def remove(self, worker, blocks):
        self.index.remove(worker, blocks)
        self.sets.get(worker, set()).difference_update(blocks)

    @rule(worker=workers)
    def clear(self, worker):
        self.index.clear(worker)
        self.sets.pop(worker, None)

    @rule(worker=workers)
    def drop(self, worker):
        self.index.drop(worker)
        self.sets.pop(worker, None)

    @rule()
    def count(self):
        assert len(self.index) == len(set().union(*self.sets.values()))

    @rule(prompt=hashes)
    def look_up(self, prompt):
        expected = {}
        for worker, held in self.sets.items():
            depth = next((i for i, block in enumerate(prompt) if block not in held), len(prompt))
            if depth:
                expected[worker] = depth
        assert self.index.overlaps(prompt) == expected

    @invariant()
    def snapshots_and_counts_agree(self):
        for worker in (f"w{i}" for i in range(5)):
            assert self.index.snapshot(worker) == self.sets.get(worker, set())
            assert self.index.num_blocks(worker) == len(self.sets.get(worker, ()))


TestIndexAgainstSets = IndexAgainstSets.TestCase
TestIndexAgainstSets.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_overlap_ends_at_the_first_missing_block():
    index = PrefixIndex()
    index.store("a", [1, 2, 3])
    index.store("b", [1, 3])
    assert index.overlaps([1, 2, 3, 4]) == {"a": 3, "b": 1}
    assert index.overlaps([9, 1, 2]) == {}
    assert index.overlaps([]) == {}


def test_slots_of_dropped_workers_are_used_again_without_their_blocks():
    index = PrefixIndex()
    for life in range(200):
        index.store(f"w{life}", range(100))
        index.drop(f"w{life}")
    index.store("new", [1])
    assert index.overlaps([1, 2]) == {"new": 1}
    assert len(index) == 1
    assert len(index._workers) == 1


@given(st.lists(st.tuples(workers, hashes), max_size=20))
def test_an_index_without_workers_is_empty(stores):
    index = PrefixIndex()
    for worker, blocks in stores:
        index.store(worker, blocks)
    for worker, _ in stores:
        index.drop(worker)
    assert len(index) == 0
    assert index.overlaps(range(31)) == {}
