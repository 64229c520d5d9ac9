import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hpcserve.router.approximate import ApproximateIndex
from hpcserve.router.index import PrefixIndex
from hpcserve.types import BlocksCleared, EngineInfo, KvEventBatch, Role

TTL = 120.0
CAPACITY = 9
ENGINE = EngineInfo(
    engine="mock",
    model="m",
    block_size=32,
    num_kv_blocks=2000,
    max_model_len=64000,
    kv_transport="mock",
    has_kv_events=False,
)


@pytest.fixture
def index():
    return PrefixIndex()


@pytest.fixture
def approximate(index):
    made = ApproximateIndex(index, TTL)
    made.open("a", 6)
    return made


def test_what_was_placed_is_found_at_once_and_until_it_expires(index, approximate):
    approximate.placed("a", [1, 2, 3], 1000.0)
    assert index.overlaps([1, 2, 3, 4]) == {"a": 3}
    approximate.expire(1000.0 + TTL - 1)
    assert index.overlaps([1, 2, 3, 4]) == {"a": 3}
    approximate.expire(1000.0 + TTL)
    assert index.overlaps([1, 2, 3, 4]) == {}


def test_blocks_that_are_asked_for_again_live_on(index, approximate):
    approximate.placed("a", [1, 2, 3], 0.0)
    approximate.placed("a", [1, 2, 7], 100.0)
    approximate.expire(TTL)
    assert index.snapshot("a") == {1, 2, 7}
    approximate.expire(100.0 + TTL)
    assert index.snapshot("a") == set()
    assert not approximate._guesses["a"].latest


def test_a_full_cache_forgets_the_end_of_the_oldest_prompt_first(index, approximate):
    approximate.placed("a", [1, 2, 3], 0.0)
    approximate.placed("a", [4, 5], 1.0)
    approximate.placed("a", [6, 7, 8], 2.0)
    assert index.snapshot("a") == {1, 4, 5, 6, 7, 8}
    approximate.placed("a", [9, 10, 11], 3.0)
    assert index.snapshot("a") == {6, 7, 8, 9, 10, 11}


def test_a_prompt_larger_than_the_cache_keeps_its_beginning(index, approximate):
    approximate.placed("a", [1, 2], 0.0)
    approximate.placed("a", list(range(10, 30)), 1.0)
    assert index.overlaps(range(10, 30)) == {"a": 6}
    assert index.num_blocks("a") == 6


def test_workers_with_events_and_unknown_ones_are_left_alone(index, approximate):
    index.store("exact", [1, 2])
    approximate.placed("exact", [5], 0.0)
    approximate.placed("stranger", [5], 0.0)
    approximate.expire(TTL)
    assert index.overlaps([1, 2]) == {"exact": 2}
    assert index.overlaps([5]) == {}
    assert "exact" not in approximate


def test_a_worker_that_comes_back_begins_with_nothing_and_loses_nothing_to_its_earlier_life(index, approximate):
    approximate.placed("a", [1, 2], 0.0)
    approximate.close("a")
    index.drop("a")
    approximate.open("a", 6)
    approximate.placed("a", [1, 2], 10.0)
    approximate.expire(TTL)
    assert index.overlaps([1, 2]) == {"a": 2}


def test_opening_again_forgets_nothing(index, approximate):
    approximate.placed("a", [1, 2], 0.0)
    approximate.open("a", 6)
    approximate.expire(TTL)
    assert index.overlaps([1, 2]) == {}


def test_a_capacity_that_makes_no_sense_bounds_nothing(index, approximate):
    approximate.open("odd", -1)
    approximate.placed("odd", list(range(50)), 0.0)
    assert index.num_blocks("odd") == 50


@pytest.fixture
def guessing(bench):
    """A router of workers without KV events, and of one that has them."""
    made = bench(policy="kv", approximate_ttl_s=TTL)
    made.add(Role.BOTH, "a", "b", engine=ENGINE)
    return made


def test_a_prompt_goes_where_it_was_placed_before_until_that_expires(guessing):
    first = guessing.assign(hashes=range(10))
    guessing.router.release(first.request_id)
    again = guessing.assign(hashes=range(10), now=TTL / 2)
    assert (again.decode, again.cached_tokens) == (first.decode, 319)
    assert guessing.assign(hashes=range(10), now=2 * TTL).cached_tokens == 0


def test_events_of_engines_that_have_none_neither_count_nor_ask_for_a_snapshot(guessing):
    first = guessing.assign(hashes=range(10))
    guessing.router.release(first.request_id)
    cleared = KvEventBatch(worker=first.decode, seq=7, events=[BlocksCleared()], is_snapshot=True)
    assert guessing.router.apply(cleared)
    assert guessing.assign(hashes=range(10)).cached_tokens == 319


def test_both_workers_of_a_disaggregated_request_are_taken_to_hold_its_prompt(bench):
    made = bench(policy="kv")
    made.add(Role.PREFILL, "p", engine=ENGINE)
    made.add(Role.DECODE, "d", engine=ENGINE)
    assert made.assign(num_tokens=3200).prefill == "p"
    assert {worker: load.indexed_blocks for worker, load in made.router.loads().items()} == {"p": 100, "d": 100}


@pytest.mark.parametrize(("has_kv_events", "source"), [(True, "a"), (False, None)])
def test_what_is_only_guessed_is_not_pulled(bench, has_kv_events, source):
    made = bench(policy="kv")
    made.add(Role.BOTH, "a", "b", engine=msgspec.structs.replace(ENGINE, has_kv_events=has_kv_events))
    made.assign(num_tokens=4000, exclude=("b",))
    if has_kv_events:
        made.store("a", range(120))
    made.assign(num_tokens=16_000, hashes=[], exclude=("b",))
    assignment = made.assign(num_tokens=4000, hashes=range(120))
    assert (assignment.decode, assignment.source) == ("b", source)


def test_a_worker_that_is_removed_is_guessed_no_more(guessing):
    first = guessing.assign(hashes=range(10))
    guessing.router.remove_worker(first.decode)
    assert guessing.router.stats().indexed_blocks == 0
    guessing.add(Role.BOTH, first.decode, engine=ENGINE)
    assert guessing.router.loads()[first.decode].indexed_blocks == 0


class ApproximateAgainstTimes(RuleBasedStateMachine):
    """Held are, of the blocks asked for lately, the latest: whole prompts by time, within the oldest the first ones."""

    def __init__(self):
        super().__init__()
        self.index = PrefixIndex()
        self.approximate = ApproximateIndex(self.index, TTL)
        self.approximate.open("a", CAPACITY)
        self.now = 0.0
        self.used = {}  # block: (when, number of the prompt, minus the position)
        self.num_prompts = 0

    @rule(root=st.integers(0, 2), length=st.integers(0, 12))
    def place(self, root, length):
        blocks = [0, 1, *range(10 * (root + 1), 10 * (root + 1) + 10)][:length]
        self.num_prompts += 1
        self.used |= {block: (self.now, self.num_prompts, -i) for i, block in enumerate(blocks)}
        self.used = dict(sorted(self.used.items(), key=lambda item: item[1])[-CAPACITY:])
        self.approximate.placed("a", blocks, self.now)

    @rule(seconds=st.sampled_from([1.0, 40.0, 120.0]))
    def wait(self, seconds):
        self.now += seconds
        self.approximate.expire(self.now)
        self.used = {block: use for block, use in self.used.items() if use[0] + TTL > self.now}

    @precondition(lambda self: self.used)
    @rule()
    def restart(self):
        self.approximate.close("a")
        self.index.drop("a")
        self.approximate.open("a", CAPACITY)
        self.used.clear()

    @invariant()
    def held_is_what_the_times_say(self):
        assert self.index.snapshot("a") == set(self.used)
        guess = self.approximate._guesses["a"]
        assert set(guess.latest) == set(self.used)
        assert len(guess.prompts) <= len(self.approximate._order)


TestApproximateAgainstTimes = ApproximateAgainstTimes.TestCase
TestApproximateAgainstTimes.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
