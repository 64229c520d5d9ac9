"""What `AsyncEngine` promises, run against every engine there is.

Prompts are random tokens, new for every test, so that no test finds another's prefix in the cache.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import aclosing
from itertools import count

import pytest

from hpcserve.kv.hashing import hash_blocks
from hpcserve.types import BlocksRemoved, BlocksStored, EngineRequest, KvHandle, RequestId, Sampling
from tests.contract.engine_subjects import WAIT_S, Subject, spoil, text, tokens

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(120)]

_numbers = count()
_random = random.Random(7)
GREEDY = Sampling(max_tokens=12, temperature=0.0, ignore_eos=True)
ENDLESS = Sampling(max_tokens=3000, temperature=0.0, ignore_eos=True)


def make_prompt(num_tokens: int = 100) -> list[int]:
    return [_random.randrange(300, 2000) for _ in range(num_tokens)]


def make_request(prompt: list[int] | None = None, sampling: Sampling = GREEDY, **extra: object) -> EngineRequest:
    return EngineRequest(
        request_id=RequestId(f"r{next(_numbers)}"), token_ids=prompt or make_prompt(), sampling=sampling, **extra
    )


async def test_an_engine_says_what_it_is(one: Subject, kind: str) -> None:
    assert one.info.engine == kind
    assert one.info.block_size == 32
    assert one.info.num_kv_blocks > 100
    assert one.info.max_model_len == 4096
    assert one.info.kv_transport


async def test_only_the_last_output_has_a_finish_reason(one: Subject) -> None:
    outputs = await one.run(make_request())
    assert [output.finish_reason for output in outputs] == [None] * (len(outputs) - 1) + ["length"]
    assert len(tokens(outputs)) == 12


async def test_what_nobody_streams_is_the_same_in_the_end(one: Subject) -> None:
    prompt = make_prompt()
    sampling = Sampling(max_tokens=12, temperature=0.0, ignore_eos=True, logprobs=1)
    streamed = await one.run(make_request(prompt, sampling))
    whole = await one.run(make_request(prompt, sampling, streams=False))
    assert tokens(whole) == tokens(streamed)
    assert text(whole) == text(streamed)
    assert sum(len(each.logprobs) for each in whole) == 12
    assert whole[0].cached_tokens is not None
    assert (await one.load()).waiting_tokens == 0
    if one.info.engine == "vllm":
        assert len(whole) == 1


async def test_greedy_decoding_gives_the_same_tokens_again(one: Subject) -> None:
    prompt = make_prompt()
    first, second = [await one.run(make_request(prompt)) for _ in range(2)]
    assert tokens(first) == tokens(second)
    assert text(first) == text(second) != ""


async def test_concurrent_requests_get_what_they_would_get_alone(one: Subject) -> None:
    prompts = [make_prompt(40 + 30 * i) for i in range(8)]
    together = await asyncio.gather(*(one.run(make_request(prompt)) for prompt in prompts))
    alone = [await one.run(make_request(prompt)) for prompt in prompts]
    assert [tokens(outputs) for outputs in together] == [tokens(outputs) for outputs in alone]


async def test_a_stop_string_ends_the_text_before_it(one: Subject) -> None:
    request = make_request(sampling=Sampling(max_tokens=60, temperature=0.0, ignore_eos=True))
    whole = text(await one.run(request))
    stop = next(whole[i : i + 3] for i in range(10, len(whole)) if whole[i : i + 3].isascii())
    for include_stop in (False, True):
        sampling = Sampling(max_tokens=60, temperature=0.0, ignore_eos=True, stop=(stop,), include_stop=include_stop)
        outputs = await one.run(make_request(request.token_ids, sampling))
        assert text(outputs) == whole[: whole.index(stop)] + (stop if include_stop else "")
        assert (outputs[-1].finish_reason, outputs[-1].stop_reason) == ("stop", stop)


async def test_a_stop_token_ends_the_output(one: Subject) -> None:
    prompt = make_prompt()
    generated = tokens(await one.run(make_request(prompt)))
    stop = generated[5]
    sampling = Sampling(max_tokens=12, temperature=0.0, ignore_eos=True, stop_token_ids=(stop,))
    outputs = await one.run(make_request(prompt, sampling))
    assert tokens(outputs) == generated[: generated.index(stop) + 1]
    assert (outputs[-1].finish_reason, outputs[-1].stop_reason) == ("stop", stop)


async def test_a_stop_token_waits_for_the_minimum(one: Subject) -> None:
    prompt = make_prompt()
    stop = tokens(await one.run(make_request(prompt)))[2]
    sampling = Sampling(max_tokens=12, min_tokens=8, temperature=0.0, ignore_eos=True, stop_token_ids=(stop,))
    assert len(tokens(await one.run(make_request(prompt, sampling)))) >= 8


async def test_log_probabilities_come_one_a_token(one: Subject) -> None:
    sampling = Sampling(max_tokens=5, temperature=0.0, ignore_eos=True, logprobs=3)
    outputs = await one.run(make_request(sampling=sampling))
    logprobs = [entry for output in outputs for entry in output.logprobs]
    assert [entry.token_id for entry in logprobs] == tokens(outputs)
    assert all(entry.logprob <= 0.0 and len(entry.top) == 3 for entry in logprobs)
    assert all(entry.top[0][0] == entry.token_id for entry in logprobs)


async def test_no_log_probabilities_come_unasked(one: Subject) -> None:
    assert not any(output.logprobs for output in await one.run(make_request()))


async def test_aborting_ends_the_request_with_that_reason(one: Subject) -> None:
    request = make_request(sampling=ENDLESS)
    outputs = []
    async for output in one.engine.generate(request):
        outputs.append(output)
        if len(outputs) == 3:
            await one.engine.abort(request.request_id)
    assert outputs[-1].finish_reason == "abort"
    assert len(tokens(outputs)) < ENDLESS.max_tokens


async def test_aborting_what_is_unknown_does_nothing(one: Subject) -> None:
    await one.engine.abort(RequestId("nobody"))
    assert tokens(await one.run(make_request()))


async def test_closing_the_iterator_aborts_the_request(one: Subject) -> None:
    async with aclosing(one.engine.generate(make_request(sampling=ENDLESS))) as outputs:
        async for output in outputs:
            if output.token_ids:
                break
    await _wait_until_idle(one)


async def test_cancelling_the_reader_aborts_the_request(one: Subject) -> None:
    began = asyncio.Event()

    async def read() -> None:
        async for _ in one.engine.generate(make_request(sampling=ENDLESS)):
            began.set()

    task = asyncio.create_task(read())
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await _wait_until_idle(one)


async def test_a_prompt_longer_than_the_context_is_an_error_output(one: Subject) -> None:
    outputs = await one.run(make_request(make_prompt(one.info.max_model_len + 1)))
    assert [output.finish_reason for output in outputs] == ["error"]
    assert "4096" in (outputs[0].error or "")


async def test_an_id_that_is_running_is_refused_and_the_first_goes_on(one: Subject) -> None:
    request = make_request(sampling=Sampling(max_tokens=60, temperature=0.0, ignore_eos=True))
    outputs = []
    async for output in one.engine.generate(request):
        outputs.append(output)
        if len(outputs) == 1:
            assert [again.finish_reason for again in await one.run(request)] == ["error"]
    assert len(tokens(outputs)) == 60


async def test_a_repeated_prompt_is_found_in_the_cache(one: Subject) -> None:
    prompt = make_prompt(100)
    first, second = [await one.run(make_request(prompt)) for _ in range(2)]
    assert first[0].cached_tokens == 0
    assert second[0].cached_tokens == 96
    assert all(output.cached_tokens is None for output in second[1:])


async def test_salts_share_no_prefix(one: Subject) -> None:
    prompt = make_prompt(100)
    cached = [
        (await one.run(make_request(prompt, cache_salt=salt)))[0].cached_tokens for salt in ("a", "b", None, "a", "b")
    ]
    assert cached == [0, 0, 0, 96, 96]


@pytest.mark.parametrize("salt", [None, "tenant"])
async def test_stored_blocks_are_told_with_our_hashes(one: Subject, salt: str | None) -> None:
    prompt = make_prompt(100)
    await one.run(make_request(prompt, cache_salt=salt))
    expected = hash_blocks(prompt, 32, salt)
    await one.cache.wait_for(expected)
    told = [name for event in one.cache.history if isinstance(event, BlocksStored) for name in event.hashes]
    assert [name for name in told if name in expected] == expected


async def test_generated_blocks_are_told_too(one: Subject) -> None:
    prompt = make_prompt(60)
    sampling = Sampling(max_tokens=40, temperature=0.0, ignore_eos=True)
    generated = tokens(await one.run(make_request(prompt, sampling)))
    await one.cache.wait_for(hash_blocks((prompt + generated)[:96], 32))


async def test_blocks_that_are_pushed_out_are_told(pair: list[Subject]) -> None:
    subject = pair[1]
    first = make_prompt(320)
    await subject.run(make_request(first))
    await subject.cache.wait_for(hash_blocks(first, 32))
    await flood(subject, lambda: not subject.cache.hashes.issuperset(hash_blocks(first, 32)))
    assert not subject.cache.hashes.issuperset(hash_blocks(first, 32))
    assert (await subject.run(make_request(first)))[0].cached_tokens < 320


async def test_a_prefill_hands_over_its_kv(one: Subject, two: Subject) -> None:
    prompt = make_prompt(500)
    outputs = await one.run(make_request(prompt, prefill_only=True))
    assert len(tokens(outputs)) == 1
    assert outputs[-1].finish_reason in ("length", "stop")
    handle = outputs[-1].kv
    assert isinstance(handle, KvHandle)
    assert (handle.num_tokens, handle.transport) == (500, one.info.kv_transport)
    pulled = await two.run(make_request(prompt, kv=handle))
    assert pulled[0].pulled_tokens >= 480
    assert pulled[0].cached_tokens == 0
    assert tokens(pulled) == tokens(await one.run(make_request(prompt)))
    await two.cache.wait_for(hash_blocks(prompt, 32))


async def test_only_what_is_not_cached_is_pulled(one: Subject, two: Subject) -> None:
    shared, rest = make_prompt(320), make_prompt(180)
    await two.run(make_request(shared))
    handle = (await one.run(make_request(shared + rest, prefill_only=True)))[-1].kv
    outputs = await two.run(make_request(shared + rest, kv=handle))
    assert outputs[0].cached_tokens == 320
    assert 160 <= outputs[0].pulled_tokens <= 180


async def test_a_handle_of_a_prefix_is_pulled_and_the_rest_computed(one: Subject, two: Subject) -> None:
    prompt = make_prompt(500)
    before = (await two.load()).pulled_tokens_total
    handle = (await one.run(make_request(prompt[:320], prefill_only=True)))[-1].kv
    outputs = await two.run(make_request(prompt, kv=handle))
    assert tokens(outputs) == tokens(await one.run(make_request(prompt)))
    assert (await two.load()).pulled_tokens_total - before >= 288


async def test_a_prefill_may_pull_a_prefix_and_hand_on_the_whole_prompt(one: Subject, two: Subject) -> None:
    prompt = make_prompt(500)
    before = await two.load()
    prefix = (await one.run(make_request(prompt[:320], prefill_only=True)))[-1].kv
    handle = (await two.run(make_request(prompt, prefill_only=True, kv=prefix)))[-1].kv
    after = await two.load()
    assert after.pulled_tokens_total - before.pulled_tokens_total >= 288
    assert after.pull_failures_total == before.pull_failures_total
    assert isinstance(handle, KvHandle)
    assert handle.num_tokens == 500
    pulled = await one.run(make_request(prompt, kv=handle))
    assert tokens(pulled) == tokens(await two.run(make_request(prompt)))


async def test_a_prefix_that_moved_away_is_forgotten_before_older_ones(one: Subject, two: Subject) -> None:
    await flood(two, lambda: any(isinstance(event, BlocksRemoved) for event in two.cache.history))
    stays, moves = make_prompt(320), make_prompt(320)
    await two.run(make_request(stays))
    handle = (await two.run(make_request(moves, prefill_only=True, moves_away=True)))[-1].kv
    assert (await one.run(make_request(moves, kv=handle)))[0].pulled_tokens >= 288
    kept, moved = set(hash_blocks(stays, 32)), set(hash_blocks(moves, 32))
    await two.cache.wait_for([*kept, *moved])
    await flood(two, lambda: not two.cache.hashes >= kept | moved)
    assert two.cache.hashes >= kept
    assert not two.cache.hashes & moved


async def test_a_dead_handle_is_recomputed_and_counted(one: Subject, two: Subject) -> None:
    prompt = make_prompt(500)
    handle = (await one.run(make_request(prompt, prefill_only=True)))[-1].kv
    before = (await two.load()).pull_failures_total
    outputs = await two.run(make_request(prompt, kv=spoil(handle)))
    assert tokens(outputs) == tokens(await one.run(make_request(prompt)))
    assert outputs[0].pulled_tokens == 0
    assert (await two.load()).pull_failures_total == before + 1


@pytest.mark.parametrize("stop", [(), ("there is no such text",)])
async def test_a_resumed_request_goes_on_with_the_same_tokens_and_text(
    one: Subject, two: Subject, stop: tuple[str, ...]
) -> None:
    request = make_request(sampling=Sampling(max_tokens=60, temperature=0.0, ignore_eos=True, stop=stop))
    whole = await one.run(request)
    for num_outputs in (1, 30, 31, 32, 40):
        done = whole[:num_outputs]
        num_done = len(tokens(done))
        sampling = Sampling(max_tokens=60 - num_done, temperature=0.0, ignore_eos=True, stop=stop)
        rest = await two.run(make_request(request.token_ids + tokens(done), sampling, num_resumed=num_done))
        assert tokens(done) + tokens(rest) == tokens(whole)
        assert text(done) + text(rest) == text(whole)


async def test_the_load_counts_what_was_done(one: Subject) -> None:
    before = await one.load()
    prompt = make_prompt(100)
    for _ in range(2):
        await one.run(make_request(prompt))
    after = await one.load()
    assert after.prompt_tokens_total - before.prompt_tokens_total == 200
    assert after.generated_tokens_total - before.generated_tokens_total == 24
    assert after.cached_tokens_total - before.cached_tokens_total == 96
    assert after.prefill_tokens_per_s is not None
    assert after.prefill_tokens_per_s > 0
    assert after.decode_tokens_per_s is not None
    assert after.decode_tokens_per_s > 0


async def test_the_work_that_was_done_is_reported_with_its_time(one: Subject) -> None:
    before = (await one.load()).work
    await one.run(make_request(make_prompt(300)))
    work = (await one.load()).work
    assert work.prefill_tokens - before.prefill_tokens == 300
    num_passes = work.prefill_passes - before.prefill_passes
    assert 300**2 / num_passes <= work.prefill_squares - before.prefill_squares <= 300**2
    assert 9 <= work.decode_steps - before.decode_steps <= 12
    assert work.decode_kv_read > before.decode_kv_read
    assert work.prefill_s > before.prefill_s
    assert work.decode_s > before.decode_s


async def test_the_load_shows_running_requests(one: Subject) -> None:
    requests = [make_request(sampling=ENDLESS) for _ in range(3)]
    began = [asyncio.Event() for _ in requests]

    async def read(index: int) -> str | None:
        async for output in one.engine.generate(requests[index]):
            began[index].set()
            last = output.finish_reason
        return last

    reading = [asyncio.create_task(read(index)) for index in range(3)]
    await asyncio.gather(*(event.wait() for event in began))
    load = await one.load()
    for request in requests:
        await one.engine.abort(request.request_id)
    assert await asyncio.gather(*reading) == ["abort"] * 3
    assert load.num_running + load.num_waiting == 3
    assert 0.0 < load.kv_usage <= 1.0
    await _wait_until_idle(one)


async def flood(subject: Subject, is_enough: Callable[[], bool]) -> None:
    """Run prompts that come once until it is enough, or they have filled the cache."""
    for _ in range(subject.info.num_kv_blocks * 32 // 4000 + 1):
        if is_enough():
            return
        batch = [make_request(make_prompt(3900), Sampling(max_tokens=1)) for _ in range(4)]
        await asyncio.gather(*(subject.run(request) for request in batch))


async def _wait_until_idle(subject: Subject) -> None:
    async with asyncio.timeout(WAIT_S):
        while (load := await subject.load()).num_running or load.num_waiting:
            await asyncio.sleep(0.01)
