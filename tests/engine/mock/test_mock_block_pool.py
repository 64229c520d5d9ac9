import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hpcserve.engine.mock.block_pool import BlockPool
from hpcserve.types import BlocksRemoved, BlocksStored

NUM_BLOCKS = 8


class PoolAgainstOwners(RuleBasedStateMachine):
    """Owners take and give back blocks; the pool's numbers and events must follow."""

    def __init__(self):
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS)
        self.owned = []  # lists of blocks
        self.told = set()  # names, as the events say

    @rule(count=st.integers(1, 4))
    def allocate(self, count):
        if count > self.pool.num_free:
            with pytest.raises(ValueError, match="are free"):
                self.pool.allocate(count)
            return
        self.owned.append(self.pool.allocate(count))

    @precondition(lambda self: self.owned)
    @rule(data=st.data(), names=st.lists(st.integers(0, 9), min_size=1, max_size=4))
    def name(self, data, names):
        owned = data.draw(st.sampled_from(self.owned))
        for block, name in zip(owned, names, strict=False):
            if block not in self.pool._names:
                self.pool.name(block, name)

    @rule(names=st.lists(st.integers(0, 9), max_size=4))
    def use_cached(self, names):
        blocks = self.pool.find(names)
        before = self.pool.num_free_without(blocks)
        self.pool.reference(blocks)
        if len(set(blocks)) == len(blocks):
            assert self.pool.num_free == before
        self.owned.append(blocks)

    @precondition(lambda self: self.owned)
    @rule(data=st.data())
    def free(self, data):
        owned = data.draw(st.sampled_from(self.owned))
        self.owned.remove(owned)
        self.pool.free(owned)

    @invariant()
    def referenced_blocks_are_the_owned_ones(self):
        owned = {block for blocks in self.owned for block in blocks}
        assert self.pool.num_active == len(owned)
        for block in range(NUM_BLOCKS):
            assert self.pool._references[block] == sum(blocks.count(block) for blocks in self.owned)

    @invariant()
    def what_events_say_is_what_can_be_found(self):
        for event in self.pool.take_events():
            match event:
                case BlocksStored(hashes=names):
                    assert not self.told & set(names)
                    self.told |= set(names)
                case BlocksRemoved(hashes=names):
                    assert self.told >= set(names)
                    self.told -= set(names)
        assert self.told == {name for name in range(10) if self.pool.find([name])}

    def teardown(self):
        for owned in self.owned:
            self.pool.free(owned)
        assert self.pool.num_free == NUM_BLOCKS
        assert sorted(self.pool.allocate(NUM_BLOCKS)) == list(range(NUM_BLOCKS))


TestPoolAgainstOwners = PoolAgainstOwners.TestCase
TestPoolAgainstOwners.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)


def named(pool, *names):
    blocks = pool.allocate(len(names))
    for block, name in zip(blocks, names, strict=True):
        pool.name(block, name)
    return blocks


def test_a_freed_block_is_found_until_it_is_evicted():
    pool = BlockPool(2)
    pool.free(named(pool, 7, 8))
    assert len(pool.find([7, 8])) == 2
    pool.allocate(1)
    assert len(pool.find([7, 8])) == 1, "of one sequence the last block goes first"
    pool.allocate(1)
    assert pool.find([7]) == []


def test_the_least_recently_used_is_evicted_first():
    pool = BlockPool(3)
    for name in (1, 2, 3):
        pool.free(named(pool, name))
    again = pool.find([1])
    pool.reference(again)
    pool.free(again)
    pool.take_events()
    pool.allocate(2)
    assert pool.take_events() == [BlocksRemoved([2, 3])]
    assert pool.find([1])


def test_blank_blocks_are_given_out_before_cached_ones():
    pool = BlockPool(4)
    pool.free(named(pool, 1))
    pool.allocate(3)
    assert pool.find([1])


def test_a_second_block_of_the_same_content_stays_nameless():
    pool = BlockPool(2)
    first, second = named(pool, 5), named(pool, 5)
    assert pool.find([5]) == first
    pool.free(second)
    assert pool.take_events() == [BlocksStored([5])]


def test_a_block_used_by_two_is_free_when_both_are_done():
    pool = BlockPool(1)
    blocks = named(pool, 1)
    pool.reference(blocks)
    pool.free(blocks)
    assert pool.num_free == 0
    pool.free(blocks)
    assert pool.num_free == 1
