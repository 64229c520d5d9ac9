"""`truncation: "auto"`: which turns a conversation loses."""

from __future__ import annotations

import pytest
from fake_backend import CONTEXT

PATH = "/v1/responses"


def turn(number: int, length: int = 100) -> list[dict]:
    call = {"type": "function_call", "call_id": f"c{number}", "name": "f", "arguments": "{}"}
    return [
        {"role": "user", "content": f"<q{number}>" + "x" * length},
        call,
        {"type": "function_call_output", "call_id": f"c{number}", "output": f"<o{number}>"},
        {"role": "assistant", "content": f"<a{number}>"},
    ]


def conversation(num_turns: int, length: int = 100) -> list[dict]:
    return [item for number in range(num_turns) for item in turn(number, length)] + [{"role": "user", "content": "<q>"}]


async def ask(server, given: list[dict], **fields: object) -> tuple[int, dict]:
    body = {"model": "mock", "input": given, "instructions": "<i>", "truncation": "auto", **fields}
    return await server.post(PATH, body)


@pytest.mark.parametrize("num_turns", [0, 1, 3, 6, 7, 8, 20, 41])
@pytest.mark.parametrize("room", [10, 300])
async def test_the_newest_turns_that_fit_are_kept_whole_and_so_are_instructions(server, tokenizer, num_turns, room):
    status, answer = await ask(server, conversation(num_turns), max_output_tokens=room)
    assert (status, answer["truncation"]) == (200, "auto")
    token_ids = server.backend.requests[-1].token_ids
    prompt = tokenizer.decode(token_ids)
    kept = [number for number in range(num_turns) if f"<q{number}>" in prompt]
    assert kept == list(range(num_turns - len(kept), num_turns))
    assert all(f"<o{number}>" in prompt and f"<a{number}>" in prompt for number in kept)
    assert "<i>" in prompt
    assert "<q>" in prompt
    assert len(token_ids) + room <= CONTEXT
    if len(kept) < num_turns:  # one more would not have fit
        longer = [*turn(num_turns - len(kept) - 1), *conversation(num_turns)[-4 * len(kept) - 1 :]]
        status, _ = await server.post(
            PATH, {"model": "mock", "input": longer, "instructions": "<i>", "max_output_tokens": room}
        )
        assert status == 400


async def test_without_a_limit_an_answer_gets_an_eighth_of_the_context(server):
    status, _ = await ask(server, conversation(20))
    assert status == 200
    sampling = server.backend.requests[0].sampling
    assert CONTEXT / 8 <= sampling.max_tokens < CONTEXT / 8 + 200


async def test_a_last_turn_that_is_too_long_is_refused(server):
    status, answer = await ask(server, [*turn(0), {"role": "user", "content": "x" * CONTEXT}])
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")


async def test_nothing_is_left_out_unless_it_is_asked_for(server):
    status, answer = await ask(server, conversation(20), truncation="disabled")
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
