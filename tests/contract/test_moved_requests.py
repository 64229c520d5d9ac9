"""A running request moves to another engine, and nobody can tell: tokens, text, log probabilities, end, counts."""

from __future__ import annotations

import asyncio
import random
from itertools import count

import msgspec
import pytest

from hpcserve.types import EngineOutput, EngineRequest, RequestId, Sampling
from tests.contract.engine_subjects import Subject, text, tokens
from tests.contract.moving import Moved, moved

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(120)]

_numbers = count()
_random = random.Random(11)
LENGTH = 60
BYTES = (132, 107, 110, 163, 229)  # in the small model: C3, A9, AC, E2 and 82, which make é, ì and €


def make_request(num_prompt: int = 200, *, streams: bool = True, **sampling: object) -> EngineRequest:
    settings = {"max_tokens": LENGTH, "temperature": 0.0, "ignore_eos": True, **sampling}
    return EngineRequest(
        request_id=RequestId(f"m{next(_numbers)}"),
        token_ids=[_random.randrange(300, 2000) for _ in range(num_prompt)],
        sampling=Sampling(**settings),  # type: ignore[arg-type]
        streams=streams,
    )


async def undisturbed(subject: Subject, request: EngineRequest) -> list[EngineOutput]:
    """Run it as it is, in a cache of its own."""
    name = RequestId(f"u{next(_numbers)}")
    return await subject.run(msgspec.structs.replace(request, request_id=name, cache_salt=name))


def check_same(outputs: list[EngineOutput], expected: list[EngineOutput]) -> None:
    assert tokens(outputs) == tokens(expected)
    assert text(outputs) == text(expected)
    assert [output.finish_reason for output in outputs if output.finish_reason] == [expected[-1].finish_reason]
    assert outputs[-1].stop_reason == expected[-1].stop_reason


def logprobs(outputs: list[EngineOutput]) -> list[tuple[object, ...]]:
    entries = [entry for output in outputs for entry in output.logprobs]
    return [(each.token_id, each.token, round(each.logprob, 3), len(each.top)) for each in entries]


@pytest.mark.parametrize("with_kv", [True, False])
@pytest.mark.parametrize("after", [1, 30])
async def test_greedy_output_and_counts_are_those_of_the_undisturbed_run(
    one: Subject, two: Subject, after: int, with_kv: bool
) -> None:
    request = make_request(num_prompt=500, logprobs=2)
    expected = await undisturbed(one, request)
    sequence = await moved(one, two, request, after, with_kv=with_kv)
    check_same(sequence.outputs, expected)
    assert logprobs(sequence.outputs) == logprobs(expected)
    assert len(tokens(sequence.outputs)) == LENGTH
    assert (sequence.pulled_tokens >= 480) is with_kv
    assert sequence.counts.pauses.num("pulled" if with_kv else "recomputed") == 1
    assert len(sequence.taken) == with_kv, "whoever gave the KV is told once that it was fetched"
    assert [output.cached_tokens for output in sequence.outputs if output.cached_tokens is not None] == [0]


async def test_nothing_is_lost_of_a_reply_that_is_not_streamed(one: Subject, two: Subject) -> None:
    request = make_request(streams=False, logprobs=1, max_tokens=LENGTH * 4, stop=("there is no such text",))
    beside = Moved(make_request(max_tokens=LENGTH * 4))  # says how far the other one is, too
    sequence = Moved(request)
    companion = asyncio.create_task(beside.run_on(one))
    await sequence.run_on(one, LENGTH, beside=beside)
    await sequence.run_on(two)
    await companion
    expected = await undisturbed(one, request)
    check_same(sequence.outputs, expected)
    assert logprobs(sequence.outputs) == logprobs(expected)
    assert sequence.progress.remaining().num_resumed > LENGTH // 2


async def test_a_request_moves_more_than_once(one: Subject, two: Subject) -> None:
    request = make_request()
    sequence = Moved(request)
    await sequence.run_on(one, 10)
    await sequence.run_on(two, 25)
    await sequence.run_on(one, 40)
    await sequence.run_on(two)
    check_same(sequence.outputs, await undisturbed(two, request))


@pytest.mark.parametrize("include_stop", [False, True])
async def test_a_stop_string_is_found_wherever_the_seam_is(one: Subject, two: Subject, include_stop: bool) -> None:
    request = make_request()
    whole = text(await undisturbed(one, request))
    stop = whole[len(whole) // 2 :][:9]
    stopped = with_sampling(request, stop=(stop,), include_stop=include_stop)
    expected = await undisturbed(one, stopped)
    assert expected[-1].stop_reason == stop
    assert len(expected) > 8
    for num_outputs in range(len(expected) - 8, len(expected)):
        check_same(await lost_after(two, stopped, expected[:num_outputs]), expected)


async def test_a_character_may_be_split_between_two_workers(kind: str, one: Subject, two: Subject) -> None:
    if kind == "mock":
        pytest.skip("the mock engine writes ASCII only")
    request = make_request(temperature=1.0, seed=3, allowed_token_ids=BYTES, logprobs=0)
    expected = await undisturbed(one, request)
    assert len(set(text(expected)) - {"\N{REPLACEMENT CHARACTER}"}) > 1, "whole characters"
    for num_outputs in range(1, 13):
        outputs = await lost_after(two, request, expected[:num_outputs])
        check_same(outputs, expected)
        assert logprobs(outputs) == logprobs(expected)


@pytest.mark.parametrize(
    "sampling",
    [
        {"frequency_penalty": 1.5},
        {"presence_penalty": 1.2, "repetition_penalty": 1.3, "logprobs": 1},
        {"min_tokens": 40, "stop_token_ids": tuple(range(2000))},
        {"temperature": 1.0, "seed": 5},
        {"temperature": 0.8, "seed": 6, "top_p": 0.9, "top_k": 40, "frequency_penalty": 0.7},
    ],
)
async def test_sampling_goes_on_as_if_nothing_had_happened(
    one: Subject, two: Subject, sampling: dict[str, object]
) -> None:
    request = make_request(**sampling)
    expected = await undisturbed(one, request)
    for after in (1, 20):
        sequence = await moved(one, two, request, after)
        check_same(sequence.outputs, expected)


async def test_what_must_not_be_said_stays_unsaid_wherever_the_seam_is(kind: str, one: Subject, two: Subject) -> None:
    if kind == "mock":
        pytest.skip("the mock engine does not look at words")
    request = make_request()
    plain = await undisturbed(one, request)
    assert {len(output.token_ids) for output in plain} == {1}
    for place in range(10, LENGTH - 10):
        bounded = with_sampling(request, bad_words=("".join(output.text for output in plain[place : place + 3]),))
        expected = await undisturbed(one, bounded)
        differing = [number for number, output in enumerate(expected) if output.token_ids != plain[number].token_ids]
        if differing and differing[0] > place:
            break  # it is the end of the words that was kept from coming
    else:
        pytest.fail("no words of several tokens")
    for num_outputs in range(place, place + 4):
        check_same(await lost_after(two, bounded, expected[:num_outputs]), expected)


async def test_a_seed_holds_where_prompts_are_computed_in_parts(one: Subject, two: Subject) -> None:
    num = (one.info.max_batched_tokens or 0) // 3000 + 2
    requests = [make_request(3000, temperature=1.0, seed=seed, max_tokens=12) for seed in range(num)]
    alone = [await undisturbed(one, request) for request in requests[:2]]
    together = await asyncio.gather(*(undisturbed(one, request) for request in requests))
    for expected, outputs in zip(alone, together, strict=False):
        check_same(outputs, expected)


async def lost_after(new: Subject, request: EngineRequest, done: list[EngineOutput]) -> list[EngineOutput]:
    """Go on elsewhere after exactly these outputs, as if their worker were lost with all that it held."""
    sequence = Moved(msgspec.structs.replace(request, request_id=RequestId(f"l{next(_numbers)}")))
    for output in done:
        sequence.progress.take(output)
    await sequence.run_on(new)
    return sequence.outputs


def with_sampling(request: EngineRequest, **changes: object) -> EngineRequest:
    return msgspec.structs.replace(request, sampling=msgspec.structs.replace(request.sampling, **changes))
