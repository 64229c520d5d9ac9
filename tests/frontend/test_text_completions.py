from __future__ import annotations

import json

from fake_backend import FakeBackend, speak

PATH = "/v1/completions"
BODY = {"model": "mock", "prompt": "hi"}


async def test_a_completion_is_answered_in_vllms_fields_and_order(server):
    status, answer = await server.complete()
    assert status == 200
    assert answer["id"].startswith("cmpl-")
    assert answer["object"] == "text_completion"
    assert list(answer)[:5] == ["id", "object", "created", "model", "choices"]
    choice = answer["choices"][0]
    assert list(choice)[:5] == ["index", "text", "logprobs", "finish_reason", "stop_reason"]
    assert (choice["text"], choice["finish_reason"]) == ("Hello world", "stop")
    assert answer["usage"]["prompt_tokens"] == 2


async def test_sixteen_tokens_are_generated_by_default(server):
    await server.complete()
    assert server.backend.requests[0].sampling.max_tokens == 16


async def test_the_default_shrinks_to_what_the_context_leaves(server):
    await server.complete(prompt=[65] * 995)
    assert server.backend.requests[0].sampling.max_tokens == 5


async def test_prompts_come_as_text_or_ids_alone_or_in_lists(server):
    forms = ["hi", ["hi", "ho"], [104, 105], [[104, 105], [104, 111]]]
    for prompt in forms:
        status, answer = await server.complete(prompt=prompt)
        assert status == 200, answer
    ids = [request.token_ids for request in server.backend.requests]
    hi, ho = list(b"hi"), list(b"ho")
    assert ids == [hi, hi, ho, hi, hi, ho]


async def test_choices_of_a_list_of_prompts_are_numbered_prompt_by_prompt(server):
    _, answer = await server.complete(prompt=["a", "b"], n=2, echo=True)
    assert [each["index"] for each in answer["choices"]] == [0, 1, 2, 3]
    assert [each["text"][0] for each in answer["choices"]] == ["a", "a", "b", "b"]
    assert answer["usage"]["prompt_tokens"] == 2


async def test_the_prompt_is_echoed_also_when_it_came_as_ids(server):
    _, answer = await server.complete(prompt=list(b"abc"), echo=True)
    assert answer["choices"][0]["text"] == "abcHello world"
    events = await server.stream(PATH, {**BODY, "echo": True})
    texts = [json.loads(event)["choices"][0]["text"] for event in events[:-1]]
    assert texts == ["hiHello", " world"]


async def test_logprobs_come_in_the_completions_format(server):
    _, answer = await server.complete(logprobs=2)
    assert answer["choices"][0]["logprobs"] == {
        "text_offset": [0, 5],
        "token_logprobs": [-0.5, -0.5],
        "tokens": ["Hello", " world"],
        "top_logprobs": [{"Hello": -0.5, "alt1": -1.5}, {" world": -0.5, "alt1": -1.5}],
    }


async def test_offsets_of_streamed_logprobs_go_on_from_chunk_to_chunk(server):
    events = await server.stream(PATH, {**BODY, "logprobs": 0})
    offsets = [json.loads(event)["choices"][0]["logprobs"]["text_offset"] for event in events[:-1]]
    assert offsets == [[0], [5]]


async def test_a_completion_is_streamed(make_server):
    server = await make_server(FakeBackend(speak(["a", "b"], "length")))
    events = await server.stream(PATH, {**BODY, "stream_options": {"include_usage": True}})
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert [chunk["choices"][0]["text"] for chunk in chunks[:2]] == ["a", "b"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:2]] == [None, "length"]
    assert list(chunks[0]["choices"][0]) == list(chunks[1]["choices"][0])
    assert chunks[2]["usage"]["completion_tokens"] == 2
    assert chunks[2]["choices"] == []
