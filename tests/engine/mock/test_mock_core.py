import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from hpcserve.engine.mock.timing import TimingModel
from hpcserve.kv.hashing import hash_blocks

BLOCK = 16  # of conftest
TIMING = TimingModel()


def published_prefill_ms(n):
    return 4.209989e-07 * n * n + 1.518344e-02 * n + 16.50142


def published_decode_ms(u):
    return max(1.0, -25.74 * u * u + 54.01 * u + 5.74)


# --- time --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 100, 1024, 8192])
def test_a_prompt_takes_one_prefill_pass_which_gives_the_first_token(virtual, n):
    core = virtual(num_blocks=2000)
    request = core.add(n, max_tokens=1)
    core.run()
    assert core.times[request] == [pytest.approx(published_prefill_ms(n) / 1000)]


def test_decode_steps_follow_the_context_that_is_read(virtual):
    core = virtual(num_blocks=100)
    core.add(BLOCK * 10, max_tokens=BLOCK * 2 + 1)
    core.run()
    for index, step in enumerate(core.steps[1:], 1):
        share = (BLOCK * 10 + index) / (100 * BLOCK)
        assert step.duration_s == pytest.approx(published_decode_ms(share) / 1000)


def test_a_shared_prefix_is_read_by_each_that_decodes(virtual):
    core = virtual(num_blocks=100)
    core.add(BLOCK * 10, max_tokens=9)
    core.add(BLOCK * 10, max_tokens=9)
    core.run()
    assert core.steps[1].duration_s == pytest.approx(published_decode_ms(2 * (BLOCK * 10 + 1) / (100 * BLOCK)) / 1000)


def test_a_prompt_being_computed_is_not_read_by_the_decoding_beside_it(virtual):
    core = virtual(num_blocks=1024)
    core.add(320, max_tokens=9)
    core.step()
    core.add(range(5000, 6000), max_tokens=2)
    step = core.step()
    expected_ms = published_prefill_ms(1000) + published_decode_ms(321 / (1024 * BLOCK))
    assert step.duration_s == pytest.approx(expected_ms / 1000)


def test_more_context_than_the_cache_holds_is_read_as_a_full_cache(virtual):
    core = virtual(num_blocks=20)
    for _ in range(3):
        core.add(BLOCK * 12, max_tokens=4)
    core.run()
    assert max(step.duration_s for step in core.steps[1:]) == pytest.approx(published_decode_ms(1.0) / 1000)


def test_a_long_prompt_is_cut_into_chunks_of_the_token_budget(virtual):
    core = virtual(max_batched_tokens=512)
    request = core.add(1200, max_tokens=1)
    core.run()
    assert len(core.steps) == 3
    passes_ms = sum(published_prefill_ms(n) for n in (512, 512, 176))
    assert core.times[request] == [pytest.approx(passes_ms / 1000)]


def test_decoding_goes_on_while_another_prompt_is_computed(virtual):
    core = virtual(max_batched_tokens=512)
    first = core.add(32, max_tokens=50)
    core.step()
    core.add(range(5000, 7000), max_tokens=1)
    before = len(core.outputs[first])
    for _ in range(3):
        assert core.step().duration_s > published_prefill_ms(400) / 1000
    assert len(core.outputs[first]) == before + 3


def test_prompts_of_one_step_share_a_pass(virtual):
    core = virtual()
    core.add(range(100), max_tokens=1)
    core.add(range(1000, 1100), max_tokens=1)
    core.run()
    assert len(core.steps) == 1
    assert core.now == pytest.approx(published_prefill_ms(200) / 1000)


def test_no_more_sequences_run_than_allowed(virtual):
    core = virtual(max_num_seqs=3)
    for start in range(7):
        core.add(range(start * 100, start * 100 + 20), max_tokens=2)
    core.step()
    assert core.core.load().num_running == 3
    assert core.core.load().num_waiting == 4
    assert core.core.load().waiting_tokens == 80
    core.run()
    assert all(len(outputs) == 2 for outputs in core.outputs.values())


def test_measured_rates_are_those_of_the_model(virtual):
    core = virtual()
    assert core.core.load().prefill_tokens_per_s is None
    core.add(4096, max_tokens=200)
    core.run()
    load = core.core.load()
    usage = 256 / 1024
    expected_s = published_prefill_ms(4096) / 1000
    assert load.prefill_tokens_per_s == pytest.approx(4096 / expected_s)
    assert load.decode_tokens_per_s == pytest.approx(1000 / published_decode_ms(usage), rel=0.05)


# --- prefix cache ------------------------------------------------------------------------------------------------


def test_a_prefix_is_computed_once(virtual):
    core = virtual()
    first = core.add(160)
    core.run()
    started = core.now
    second = core.add([*range(1000, 1160), *range(50)], max_tokens=1)
    core.run()
    assert core.outputs[first][0].cached_tokens == 0
    assert core.outputs[second][0].cached_tokens == 160
    assert core.now - started == pytest.approx(published_prefill_ms(50) / 1000)
    assert core.core.load().cached_tokens_total == 160


def test_an_identical_prompt_computes_its_last_block_again(virtual):
    core = virtual()
    core.add(160)
    core.run()
    again = core.add(160)
    core.run()
    assert core.outputs[again][0].cached_tokens == 144


def test_prompts_of_one_step_share_a_prefix_too(virtual):
    core = virtual()
    core.add(range(320), max_tokens=1)
    second = core.add([*range(320), 1, 2], max_tokens=1)
    core.step()
    assert core.outputs[second][0].cached_tokens == 320


def test_generated_tokens_are_found_in_the_next_turn(virtual):
    core = virtual()
    first = core.add(40, max_tokens=100)
    core.run()
    turn = [*range(1000, 1040), *core.tokens(first), 5, 6, 7]
    second = core.add(turn, max_tokens=1)
    core.run()
    assert core.outputs[second][0].cached_tokens == 139 // BLOCK * BLOCK


def test_salts_do_not_share_prefixes(virtual):
    core = virtual()
    core.add(160, cache_salt="mine")
    core.run()
    other = core.add(160, cache_salt="yours")
    core.run()
    assert core.outputs[other][0].cached_tokens == 0


def test_events_name_the_blocks_of_prompt_and_output(virtual):
    core = virtual()
    request = core.add(40, max_tokens=60)
    core.run()
    tokens = [*range(1000, 1040), *core.tokens(request)]
    # The last token is never computed: nothing follows it.
    assert core.cached_names() == set(hash_blocks(tokens[:-1], BLOCK))


# --- running out of blocks ---------------------------------------------------------------------------------------


def prompts(count, length):
    return [range(i * 1000, i * 1000 + length) for i in range(count)]


def test_preemption_changes_when_tokens_come_but_not_which(virtual):
    roomy, tight = virtual(num_blocks=1000), virtual(num_blocks=12)
    for core in (roomy, tight):
        for prompt in prompts(6, 40):
            core.add(prompt, max_tokens=60)
        core.run()
    assert tight.core._scheduler.num_preemptions > 0
    assert roomy.core._scheduler.num_preemptions == 0
    for request in roomy.outputs:
        assert tight.tokens(request) == roomy.tokens(request)
        assert tight.text(request) == roomy.text(request)
        assert tight.last(request).finish_reason == "length"
    assert tight.now > roomy.now


def test_the_sequence_admitted_last_is_preempted(virtual):
    core = virtual(num_blocks=6)
    first, second = (core.add(prompt, max_tokens=40) for prompt in prompts(2, 32))
    while core.core._scheduler.num_preemptions == 0:
        core.step()
    running = [s.request_id for s in core.core._scheduler._running]
    assert running == [first]
    core.run()
    assert core.times[first][-1] < core.times[second][-1]


def test_a_sequence_may_fill_the_whole_pool(virtual):
    core = virtual(num_blocks=4)
    request = core.add(10, max_tokens=500)
    core.run()
    assert len(core.tokens(request)) == 4 * BLOCK - 10
    assert core.last(request).finish_reason == "length"


def test_lower_priority_numbers_run_first(virtual):
    core = virtual(max_num_seqs=1)
    late, soon = core.add(20, max_tokens=1, priority=5), core.add(20, max_tokens=1, priority=-1)
    core.run()
    assert core.times[soon] < core.times[late]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    work=st.lists(st.tuples(st.integers(1, 120), st.integers(1, 60), st.integers(0, 2)), min_size=1, max_size=12),
    num_blocks=st.integers(12, 30),
    aborted=st.sets(st.integers(0, 11)),
    steps=st.integers(0, 30),
)
def test_whatever_happens_nothing_leaks_and_the_rest_completes(virtual, work, num_blocks, aborted, steps):
    core = virtual(num_blocks=num_blocks, max_num_seqs=4, max_batched_tokens=64)
    ids = [core.add([family, *range(length)], max_tokens=tokens) for length, tokens, family in work]
    for _ in range(steps):
        core.step()
    gone = {ids[i] for i in aborted if i < len(ids)}
    for request in gone:
        core.core.abort(request)
    core.run()
    for request, (length, tokens, _) in zip(ids, work, strict=True):
        if request not in gone:
            assert len(core.tokens(request)) == min(tokens, num_blocks * BLOCK - length - 1)
            assert [o.finish_reason for o in core.outputs[request]].count(None) == len(core.outputs[request]) - 1
    pool = core.core._scheduler.pool
    assert pool.num_active == 0
    assert set(pool._blocks) == core.cached_names()
    load = core.core.load()
    assert (load.num_running, load.num_waiting, load.waiting_tokens, load.kv_usage) == (0, 0, 0, 0)


# --- what cannot run ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "max_tokens", "message"),
    [([], 1, "prompt is empty"), ([1], 0, "max_tokens is 0"), ([1] * 200, 1, "200 tokens"), ([-1], 1, "-1")],
)
def test_requests_that_cannot_run_end_with_an_error(virtual, tokens, max_tokens, message):
    core = virtual(max_model_len=200)
    with pytest.raises(AssertionError, match=message):
        core.add(tokens, max_tokens=max_tokens)
    assert core.step() is None


def test_a_request_id_in_use_is_refused(virtual):
    core = virtual()
    core.add(10)
    core._ids = iter([0])
    with pytest.raises(AssertionError, match="r0 is running already"):
        core.add(10)
    assert len(core.run().tokens("r0")) == 4


def test_the_output_ends_with_the_context(virtual):
    core = virtual(max_model_len=100)
    request = core.add(90, max_tokens=50)
    core.run()
    assert len(core.tokens(request)) == 10
    assert core.last(request).finish_reason == "length"
