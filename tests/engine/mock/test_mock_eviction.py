"""What requests say of their KV decides what the mock forgets first; without a word it is the least recently used."""

import pytest

NUM_BLOCKS = 100
BLOCK = 16  # of conftest
HOT = list(range(160))


@pytest.fixture
def small(virtual):
    return virtual(num_blocks=NUM_BLOCKS)


def ask(core, prompt, **hints):
    """Run a prompt alone; returns how many of its tokens were cached."""
    request = core.add(prompt, max_tokens=1, **hints)
    core.run()
    return core.outputs[request][0].cached_tokens


def flood(core, count):
    for index in range(count):
        ask(core, range(10_000 + 1000 * index, 10_160 + 1000 * index))


def kept(core):
    return core.core._scheduler.pool._kept


@pytest.mark.parametrize(("reused_tokens", "cached"), [(160, 160), (159, 144), (64, 64), (15, 0), (0, 0)])
def test_a_prompt_that_was_reused_outlives_prompts_that_come_once(small, reused_tokens, cached):
    ask(small, HOT)
    assert ask(small, HOT, reused_tokens=reused_tokens) == 144, "the last token is computed"
    ask(small, [*HOT, 1], reused_tokens=reused_tokens)
    flood(small, 30)
    assert ask(small, [*HOT, 2]) == cached


def test_at_most_the_kept_share_is_kept(small):
    for index in range(5):
        ask(small, range(1000 * index, 1000 * index + 160), reused_tokens=160)
    assert len(kept(small)) == 30
    flood(small, 30)
    assert [ask(small, [*range(1000 * index, 1000 * index + 160), 1]) for index in range(5)] == [0, 0, 160, 160, 160]


def test_a_prompt_that_moves_away_is_forgotten_before_older_ones(small):
    ask(small, HOT)
    moved = list(range(500, 660))
    ask(small, moved, moves_away=True)
    flood(small, 9)
    assert ask(small, [*HOT, 1]) == 160
    assert ask(small, [*moved, 1]) == 0


def test_a_prompt_that_moves_away_is_not_kept_for_being_reused(small):
    ask(small, HOT, reused_tokens=160, moves_away=True)
    flood(small, 10)
    assert ask(small, [*HOT, 1]) == 0


@pytest.mark.parametrize(("hints", "cached"), [({}, 160), ({"moves_away": True}, 0)])
def test_what_is_said_holds_for_an_aborted_request_too(small, hints, cached):
    ask(small, range(500, 660))
    request = small.add([*HOT, 1], max_tokens=500, **hints)
    small.step()
    small.core.abort(request)
    flood(small, 9)
    assert ask(small, [*HOT, 2]) == cached


def test_a_request_that_never_ran_moves_nothing_away(small):
    ask(small, range(500, 660))
    ask(small, HOT)
    request = small.add([*HOT, 1], moves_away=True)
    small.core.abort(request)
    flood(small, 9)
    assert ask(small, [*HOT, 2]) == 160


def test_a_preempted_prompt_is_not_kept_before_it_has_ended(virtual):
    core = virtual(num_blocks=12)
    requests = [core.add(range(1000 * i, 1000 * i + 64), max_tokens=64, reused_tokens=64) for i in range(2)]
    while not core.core._scheduler.num_preemptions:
        core.step()
    assert not kept(core)
    core.run()
    assert all(core.last(request).finish_reason == "length" for request in requests)
    assert len(kept(core)) == 3
