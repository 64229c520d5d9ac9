import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hpcserve.engine.mock.block_pool import KEPT_SHARE, BlockPool
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
    @rule(data=st.data(), num_reused=st.integers(0, 5))
    def free(self, data, num_reused):
        owned = data.draw(st.sampled_from(self.owned))
        self.owned.remove(owned)
        self.pool.free(owned, num_reused)

    @rule(names=st.lists(st.integers(0, 9), max_size=4))
    def demote(self, names):
        before = self.pool.num_free, self.pool.find(names)
        self.pool.demote(names)
        assert (self.pool.num_free, self.pool.find(names)) == before, "nothing is forgotten yet"

    @invariant()
    def a_block_is_in_one_list_and_few_are_kept(self):
        lists = [*self.pool._blank, *self.pool._cached, *self.pool._kept]
        assert len(lists) == len(set(lists)) == self.pool.num_free
        assert all(self.pool._references[block] == 0 for block in lists)
        assert len(self.pool._kept) <= KEPT_SHARE * NUM_BLOCKS

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
TestPoolAgainstOwners.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


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


# --- what is forgotten first ---------------------------------------------------------------------------------------

SIZE = 20
chains = st.builds(
    lambda conversation, length: [100 * conversation + index for index in range(length)],
    st.integers(0, 5),
    st.integers(1, SIZE // 2),
)


def run(pool, names, num_reused=0):
    """Have a sequence come and go. Returns how many blocks it found."""
    found = pool.find(names)
    pool.reference(found)
    blocks = found + pool.allocate(len(names) - len(found))
    for block, name in zip(blocks[len(found) :], names[len(found) :], strict=True):
        pool.name(block, name)
    pool.free(blocks, num_reused)
    return len(found)


def forgotten(pool):
    """Names in the order in which the pool forgets them. Empties it."""
    pool.take_events()
    pool.allocate(pool.num_free)
    return [name for event in pool.take_events() for name in event.hashes]


@settings(deadline=None)
@given(st.lists(chains, max_size=40))
def test_without_hints_it_is_plain_lru(sequences):
    pool, lru = BlockPool(SIZE), []
    for names in sequences:
        num_found = sum(name in lru for name in names)
        assert run(pool, names) == num_found
        lru = [name for name in lru if name not in names]
        lru = lru[max(0, len(lru) + len(names) - SIZE) :] + names[::-1]
    assert forgotten(pool) == lru


class TwoLists:
    """The order of eviction as two lists of names."""

    def __init__(self):
        self.ordinary, self.kept = [], []

    def run(self, names, num_reused):
        found = self.find(names)
        self.remove(found)
        num_blank = SIZE - len(found) - len(self.ordinary) - len(self.kept)
        for _ in range(len(names) - len(found) - num_blank):
            (self.ordinary or self.kept).pop(0)
        mine = [name for name in names if name not in self.ordinary and name not in self.kept]
        self.ordinary += [name for name in reversed(names[num_reused:]) if name in mine]
        self.kept += [name for name in reversed(names[:num_reused]) if name in mine]
        num_over = max(0, len(self.kept) - int(KEPT_SHARE * SIZE))
        self.ordinary += self.kept[:num_over]
        del self.kept[:num_over]
        return len(found)

    def demote(self, names):
        found = self.find(names)
        self.remove(found)
        self.ordinary = found[::-1] + self.ordinary

    def find(self, names):
        held = {*self.ordinary, *self.kept}
        return names[: next((i for i, name in enumerate(names) if name not in held), len(names))]

    def remove(self, names):
        self.ordinary = [name for name in self.ordinary if name not in names]
        self.kept = [name for name in self.kept if name not in names]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(chains, st.integers(0, SIZE // 2), st.booleans()), max_size=40))
def test_with_hints_it_is_two_lists(sequences):
    pool, model = BlockPool(SIZE), TwoLists()
    for names, num_reused, moves_away in sequences:
        assert run(pool, names, num_reused) == model.run(names, num_reused)
        if moves_away:
            pool.demote(names)
            model.demote(names)
        assert len(model.kept) <= KEPT_SHARE * SIZE
    assert forgotten(pool) == model.ordinary + model.kept


def test_what_was_reused_outlives_what_was_used_later_only_once():
    pool = BlockPool(10)
    run(pool, [1, 2], num_reused=2)
    for name in range(10, 40):
        run(pool, [name])
    assert len(pool.find([1, 2])) == 2
    pool.allocate(8)
    assert len(pool.find([1, 2])) == 2
    pool.allocate(1)
    assert len(pool.find([1, 2])) == 1, "with nothing else left it goes, the last first"


def test_what_is_pushed_out_of_the_kept_share_is_forgotten_like_the_rest_but_last():
    pool = BlockPool(10)
    run(pool, [1, 2, 3], num_reused=3)
    run(pool, [4])
    run(pool, [5], num_reused=1)
    assert forgotten(pool) == [4, 3, 2, 1, 5]


def test_only_the_part_that_was_reused_is_kept():
    pool = BlockPool(10)
    run(pool, [1, 2, 3, 4], num_reused=2)
    run(pool, [5])
    assert forgotten(pool) == [4, 3, 5, 2, 1]


def test_what_moves_away_is_forgotten_next_the_end_of_it_first():
    pool = BlockPool(10)
    run(pool, [1])
    run(pool, [2, 3, 4], num_reused=2)
    pool.demote([2, 3, 4])
    assert forgotten(pool) == [4, 3, 2, 1]


def test_what_others_still_use_does_not_move_away():
    pool = BlockPool(10)
    run(pool, [1, 2])
    run(pool, [3])
    pool.reference(pool.find([1]))
    pool.demote([1, 2])
    pool.free(pool.find([1]))
    assert forgotten(pool) == [2, 3, 1]
