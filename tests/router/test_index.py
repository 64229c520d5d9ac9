"""Both block tables under the index, against plain sets: crowded slots, wrapped ends, rebuilds and hand-overs."""

import itertools
import random

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hpcserve.router.array_table import ArrayTable
from hpcserve.router.block_table import FREE, GONE
from hpcserve.router.dict_table import DictTable
from hpcserve.router.index import PrefixIndex

UNSPREAD = pow(0x9E3779B97F4A7C15, -1, 1 << 64)
WORKERS = [f"w{i}" for i in range(70)]  # more than fit one machine word


def homed_at(slot, rank, bits=10):
    """Return a hash, one of many, whose search begins at `slot` of a table of 2**bits slots."""
    return ((slot << 64 - bits) + rank) * UNSPREAD % (1 << 64)


CROWD = [homed_at(slot, rank) for slot in (1022, 1023, 0) for rank in range(8)] + [0, 1, (1 << 64) - 1]
some_workers = st.sampled_from(WORKERS[:3] + WORKERS[-3:])
HASHES = CROWD + list(range(2, 12))
some_hashes = st.lists(st.sampled_from(HASHES), max_size=14)


def empty_array():
    return ArrayTable(np.empty(0, np.uint64), np.empty(0, np.uint32))


class IndexAgainstSets(RuleBasedStateMachine):
    """An index answers what one set of hashes a worker would; with a dict that never fills."""

    def __init__(self, table=None):
        super().__init__()
        self.index = PrefixIndex()
        self.index._table = table or DictTable()
        self.sets = {}
        for worker in WORKERS:  # so that the last ones have bits beyond the first word
            self.index.store(worker, [])

    @rule(worker=some_workers, blocks=some_hashes)
    def store(self, worker, blocks):
        self.index.store(worker, blocks)
        self.sets.setdefault(worker, set()).update(blocks)

    @rule(worker=some_workers, blocks=some_hashes)
    def remove(self, worker, blocks):
        self.index.remove(worker, blocks)
        self.sets.get(worker, set()).difference_update(blocks)

    @rule(worker=some_workers, name=st.sampled_from(["clear", "drop"]))
    def forget(self, worker, name):
        getattr(self.index, name)(worker)
        self.sets.pop(worker, None)

    @rule(room=st.sampled_from([0, 400, 3000]))
    def rebuild(self, room):
        self.index._table = self.index._table.reserve(room, len(self.index), self.index._sets.merge)

    @rule(prompt=some_hashes, times=st.sampled_from([1, 5]))
    def look_up(self, prompt, times):
        prompt = prompt * times  # long ones go through the vector path
        expected = {}
        for worker, held in self.sets.items():
            depth = next((i for i, block in enumerate(prompt) if block not in held), len(prompt))
            if depth:
                expected[worker] = depth
        assert self.index.overlaps(prompt) == expected

    @rule()
    def look_up_everything_one_by_one(self):
        for block in HASHES:
            assert set(self.index.overlaps([block])) == {w for w, held in self.sets.items() if block in held}

    @invariant()
    def counts_and_snapshots_agree(self):
        assert len(self.index) == len(set().union(*self.sets.values()))
        for worker in (*WORKERS[:3], *WORKERS[-3:]):
            assert self.index.snapshot(worker) == self.sets.get(worker, set())
            assert self.index.num_blocks(worker) == len(self.sets.get(worker, ()))


class CrowdedIndex(IndexAgainstSets):
    """The same from arrays whose hashes all want the same few slots, at their end."""

    def __init__(self):
        super().__init__(empty_array())


class OutgrowingIndex(IndexAgainstSets):
    """The same from a dict that hands over to arrays after a few blocks."""

    def __init__(self):
        super().__init__(DictTable(limit=12))


TestIndexAgainstSets = IndexAgainstSets.TestCase
TestCrowdedIndex = CrowdedIndex.TestCase
TestOutgrowingIndex = OutgrowingIndex.TestCase
TestIndexAgainstSets.settings = TestCrowdedIndex.settings = TestOutgrowingIndex.settings = settings(
    max_examples=25, stateful_step_count=30, deadline=None
)


@pytest.fixture(params=[DictTable, empty_array])
def index(request):
    index = PrefixIndex()
    index._table = request.param()
    return index


def random_hashes(count, seed=0):
    rng = random.Random(seed)
    return [rng.getrandbits(64) for _ in range(count)]


def test_long_prompts_give_each_worker_its_own_depth(index):
    prompt = random_hashes(1024)
    depths = {f"w{i}": i * 16 for i in range(1, 65)}
    for worker, depth in depths.items():
        index.store(worker, prompt[:depth])
    assert index.overlaps(prompt) == depths
    assert index.overlaps(prompt[:100]) == {worker: min(depth, 100) for worker, depth in depths.items()}
    assert index.overlaps([7, *prompt]) == {}


def test_a_prompt_whose_end_is_unknown_overlaps_up_to_there(index):
    known, unknown = random_hashes(1500), random_hashes(1500, seed=1)
    index.store("a", known)  # nearly as many as the array has room for: unknown hashes meet others' slots
    for depth in (1, 31, 32, 33, 500):
        assert index.overlaps(known[:depth] + unknown) == {"a": depth}


def test_only_so_many_answers_are_remembered(index):
    for worker in WORKERS:
        index.store(worker, range(300))
    for depth in range(1, 301):
        assert index.overlaps(range(depth)) == dict.fromkeys(WORKERS, depth)
    assert len(index._remembered) <= 64


def test_a_hole_ends_the_overlap_and_a_filled_hole_does_not(index):
    prompt = random_hashes(200)
    index.store("a", prompt)
    index.store("b", prompt)
    index.remove("a", prompt[150:151])
    index.remove("b", prompt[3:4])
    assert index.overlaps(prompt) == {"a": 150, "b": 3}
    index.store("a", prompt[150:151])
    assert index.overlaps(prompt) == {"a": 200, "b": 3}


def test_answers_that_are_remembered_belong_to_the_worker_that_has_the_slot_now(index):
    prompt = random_hashes(3)
    for worker in WORKERS:
        index.store(worker, prompt)
    assert index.overlaps(prompt) == dict.fromkeys(WORKERS, 3)
    index.drop(WORKERS[4])
    index.store("new", prompt)
    assert index.overlaps(prompt) == dict.fromkeys([*WORKERS[:4], *WORKERS[5:], "new"], 3)


def test_what_overlaps_returns_is_the_callers_to_change(index):
    for worker in WORKERS:
        index.store(worker, [1, 2])
    index.overlaps([1, 2, 3]).clear()
    assert index.overlaps([1, 2, 3]) == dict.fromkeys(WORKERS, 2)


def test_hashes_in_sequence_and_at_random_share_a_table_without_crowding():
    table = empty_array()
    hashes = [*range(20_000), *random_hashes(20_000)]
    table = table.reserve(len(hashes), 0, lambda: np.zeros(2, np.uint32))
    table.update(hashes, lambda value: 2, lambda old, new, count: None)
    slots = np.arange(len(table._values))[table._values > 0]
    assert (slots - table._homes(table._hashes[slots])).max() < 100, "no hash is far from its home"


def test_a_cache_at_its_limit_turns_over_without_making_the_table_grow():
    index = PrefixIndex()
    index._table = empty_array()
    hashes = random_hashes(60_000)
    for start in range(0, 50_000, 50):
        index.store("a", hashes[start : start + 50])
        if start >= 2000:
            index.remove("a", hashes[start - 2000 : start - 1950])
    assert len(index) == index.num_blocks("a") == 2000
    assert len(index._table._values) <= 8192


def test_sets_and_hashes_of_workers_that_come_and_go_are_forgotten(index):
    for life in range(300):
        index.store(f"w{life}", random_hashes(1000, life))
        index.store("stays", random_hashes(10, life))
        index.drop(f"w{life}")
        index.remove("stays", random_hashes(10, life))
    index._table = index._table.reserve(0, len(index), index._sets.merge)
    assert len(index) == 0
    assert sum(map(bool, index._sets.masks)) <= 1, "one of the worker that stays"
    assert index._table.select(np.arange(len(index._sets.masks)) > GONE) == []


def test_sets_that_hold_no_block_any_more_make_place_for_others(index):
    for a, b in itertools.combinations(WORKERS, 2):
        index.store(a, [1, 2])
        index.store(b, [1, 2])
        index.remove(a, [1, 2])
        index.remove(b, [1, 2])
    assert len(index._sets.masks) < 10


def test_a_dict_hands_over_at_its_limit():
    index = PrefixIndex()
    index._table = DictTable(limit=1000)
    hashes = random_hashes(3000)
    for start in range(0, 3000, 100):
        index.store("a", hashes[start : start + 100])
    assert isinstance(index._table, ArrayTable)
    assert index.overlaps(hashes) == {"a": 3000}


@pytest.mark.parametrize("bad", [-1, 1 << 64])
def test_arrays_refuse_what_is_not_an_unsigned_64_bit_number(bad):
    with pytest.raises(OverflowError):
        empty_array().update([bad], lambda value: FREE, lambda old, new, count: None)


def test_overlap_ends_at_the_first_missing_block(index):
    index.store("a", [1, 2, 3])
    index.store("b", [1, 3])
    assert index.overlaps([1, 2, 3, 4]) == {"a": 3, "b": 1}
    assert index.overlaps([9, 1, 2]) == {}
    assert index.overlaps([]) == {}


def test_slots_of_dropped_workers_are_used_again_without_their_blocks(index):
    for life in range(200):
        index.store(f"w{life}", range(100))
        index.drop(f"w{life}")
    index.store("new", [1])
    assert index.overlaps([1, 2]) == {"new": 1}
    assert len(index) == 1
    assert len(index._workers) == 1


@given(st.lists(st.tuples(some_workers, some_hashes), max_size=20))
def test_an_index_without_workers_is_empty(stores):
    index = PrefixIndex()
    for worker, blocks in stores:
        index.store(worker, blocks)
    for worker, _ in stores:
        index.drop(worker)
    assert len(index) == 0
    assert index.overlaps(HASHES) == {}
