from __future__ import annotations

import json

import pytest
from fake_backend import FakeBackend, fail_after, speak, speak_seed

from hpcserve.errors import EngineError, Unavailable
from hpcserve.types import EngineOutput

CHAT = "/v1/chat/completions"
BODY = {"model": "mock", "messages": [{"role": "user", "content": "hi"}]}


async def test_a_chat_is_answered_in_vllms_fields_and_order(server):
    status, answer = await server.chat()
    assert status == 200
    assert list(answer)[:5] == ["id", "object", "created", "model", "choices"]
    assert answer["id"].startswith("chatcmpl-")
    assert answer["object"] == "chat.completion"
    choice = answer["choices"][0]
    assert list(choice)[:6] == ["index", "message", "logprobs", "finish_reason", "stop_reason", "token_ids"]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"] == "Hello world"
    assert choice["finish_reason"] == "stop"
    prompt = len(server.backend.requests[0].token_ids)
    assert answer["usage"] == {
        "prompt_tokens": prompt,
        "total_tokens": prompt + 2,
        "completion_tokens": 2,
        "prompt_tokens_details": {"cached_tokens": 3},
        "completion_tokens_details": None,
    }


async def test_the_engine_gets_the_rendered_template_and_the_rest_of_the_context(server, tokenizer):
    await server.chat()
    request = server.backend.requests[0]
    assert tokenizer.decode(request.token_ids) == "<|bos|><|user|>hi<|end|><|assistant|>"
    assert request.sampling.max_tokens == 1000 - len(request.token_ids)
    assert request.sampling.temperature == 1.0


async def test_every_sampling_field_reaches_the_engine(server):
    status, _ = await server.chat(
        max_completion_tokens=7,
        temperature=0.5,
        top_p=0.9,
        top_k=5,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=-0.2,
        logit_bias={"65": 5},
        stop="END",
        stop_token_ids=[1, 2],
        min_tokens=2,
        ignore_eos=True,
        skip_special_tokens=False,
        include_stop_str_in_output=True,
        allowed_token_ids=[5, 6],
        bad_words=["no"],
        seed=9,
        priority=-3,
        cache_salt="mine",
        user="somebody",
        metadata={"any": "thing"},
        logprobs=True,
        top_logprobs=2,
    )
    assert status == 200
    request = server.backend.requests[0]
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.min_tokens, sampling.temperature, sampling.top_p) == (7, 2, 0.5, 0.9)
    assert (sampling.top_k, sampling.min_p, sampling.repetition_penalty) == (5, 0.1, 1.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.logit_bias) == (0.2, -0.2, {65: 5.0})
    assert (sampling.stop, sampling.stop_token_ids, sampling.ignore_eos) == (("END",), (1, 2), True)
    assert (sampling.skip_special_tokens, sampling.include_stop, sampling.seed) == (False, True, 9)
    assert (sampling.allowed_token_ids, sampling.bad_words) == ((5, 6), ("no",))
    assert (sampling.logprobs, request.priority, request.cache_salt) == (2, -3, "mine")


async def test_text_parts_reach_a_template_that_takes_parts_one_by_one(server, tokenizer):
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    await server.chat(messages=[{"role": "user", "content": parts}])
    assert "onetwo" in tokenizer.decode(server.backend.requests[0].token_ids)


async def test_a_message_of_an_earlier_answer_can_be_sent_back_as_it_came(server):
    _, answer = await server.chat()
    earlier = answer["choices"][0]["message"]
    status, _ = await server.chat(messages=[*BODY["messages"], earlier, {"role": "user", "content": "and?"}])
    assert status == 200


async def test_choices_have_an_index_and_a_seed_each(make_server):
    server = await make_server(FakeBackend(speak_seed()))
    _, answer = await server.chat(n=3, seed=40)
    texts = [(each["index"], each["message"]["content"]) for each in answer["choices"]]
    assert texts == [(0, "seed 40"), (1, "seed 41"), (2, "seed 42")]
    assert len({each.request_id for each in server.backend.requests}) == 3
    assert answer["usage"]["prompt_tokens"] == len(server.backend.requests[0].token_ids)
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 3}
    assert answer["usage"]["completion_tokens"] == 3


async def test_logprobs_come_in_the_chat_format(server):
    _, answer = await server.chat(logprobs=True, top_logprobs=2)
    content = answer["choices"][0]["logprobs"]["content"]
    assert [each["token"] for each in content] == ["Hello", " world"]
    assert content[0]["bytes"] == list(b"Hello")
    assert content[0]["top_logprobs"] == [
        {"token": "Hello", "logprob": -0.5, "bytes": list(b"Hello")},
        {"token": "alt1", "logprob": -1.5, "bytes": list(b"alt1")},
    ]


async def test_logprobs_without_alternatives_have_an_empty_list(server):
    _, answer = await server.chat(logprobs=True)
    assert answer["choices"][0]["logprobs"]["content"][1] == {
        "token": " world",
        "logprob": -0.5,
        "bytes": list(b" world"),
        "top_logprobs": [],
    }


async def test_a_stream_begins_with_the_role_and_ends_with_the_reason_and_done(server):
    events = await server.stream(CHAT, BODY)
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": "Hello"},
        {"content": " world"},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "stop"]
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    assert all(list(chunk)[:5] == ["id", "object", "created", "model", "choices"] for chunk in chunks)
    assert list(chunks[1]["choices"][0]) == ["index", "delta", "logprobs", "finish_reason", "token_ids"]
    assert list(chunks[2]["choices"][0]) == [
        "index",
        "delta",
        "logprobs",
        "finish_reason",
        "stop_reason",
        "token_ids",
    ]
    assert all("usage" not in chunk for chunk in chunks)


async def test_a_stream_ends_with_the_usage_when_asked(server):
    events = await server.stream(CHAT, {**BODY, "stream_options": {"include_usage": True}})
    chunk = json.loads(events[-2])
    assert chunk["choices"] == []
    assert chunk["usage"]["completion_tokens"] == 2
    assert chunk["usage"]["prompt_tokens_details"] == {"cached_tokens": 3}


async def test_any_text_survives_streaming(make_server):
    texts = ['"quotes" \\ and\nnewlines', "\u2028 é 日本 🎉", "\x00\x1f", "data: [DONE]\n\n", ""]
    server = await make_server(FakeBackend(speak(texts)))
    events = await server.stream(CHAT, BODY)
    assert [json.loads(event)["choices"][0]["delta"]["content"] for event in events[1:-1]] == texts


async def test_streamed_choices_are_told_apart_by_their_index(make_server):
    server = await make_server(FakeBackend(speak_seed()))
    events = await server.stream(CHAT, {**BODY, "n": 2, "seed": 1, "stream_options": {"include_usage": True}})
    chunks = [json.loads(event) for event in events[:-2]]
    assert [chunk["choices"][0]["index"] for chunk in chunks[:2]] == [0, 1]
    texts = {chunk["choices"][0]["index"]: chunk["choices"][0]["delta"]["content"] for chunk in chunks[2:]}
    assert texts == {0: "seed 1", 1: "seed 2"}


async def test_streamed_logprobs_come_with_their_deltas(server):
    events = await server.stream(CHAT, {**BODY, "logprobs": True, "top_logprobs": 1})
    chunk = json.loads(events[1])["choices"][0]
    assert chunk["logprobs"]["content"][0]["token"] == chunk["delta"]["content"] == "Hello"


async def test_what_fails_before_the_first_token_has_a_status_of_its_own(make_server):
    server = await make_server(FakeBackend(fail_after([], Unavailable("all workers are busy dying"))))
    status, answer = await server.chat(stream=True)
    assert status == 503
    assert answer["error"]["code"] == "no_worker_ready"


async def test_what_fails_later_is_the_last_event_of_the_stream(make_server):
    server = await make_server(FakeBackend(fail_after(["one"], EngineError("the engine died"))))
    events = await server.stream(CHAT, BODY)
    assert json.loads(events[1])["choices"][0]["delta"]["content"] == "one"
    assert json.loads(events[-1])["error"]["message"] == "the engine died"
    assert len(events) == 3


async def test_an_unforeseen_failure_shows_no_details(make_server, caplog):
    server = await make_server(FakeBackend(fail_after(["one"], ValueError("secret"))))
    events = await server.stream(CHAT, BODY)
    assert "secret" not in events[-1]
    assert json.loads(events[-1])["error"]["type"] == "server_error"
    status, answer = await server.chat()
    assert status == 500
    assert "secret" not in str(answer)
    assert "secret" in caplog.text


async def test_one_failed_choice_fails_the_request_and_aborts_the_others(make_server):
    backend = FakeBackend()

    async def script(request, on_output):
        if request.request_id.endswith("-0"):
            raise EngineError("no memory")
        await speak(["x"] * 1000)(request, on_output)

    backend.script = script
    server = await make_server(backend)
    status, answer = await server.chat(n=2)
    assert (status, answer["error"]["message"]) == (500, "no memory")
    assert len(backend.aborted) == 1


async def test_an_engine_that_ends_with_an_error_is_an_error(make_server):
    server = await make_server(FakeBackend(speak([""], finish="error")))
    status, answer = await server.chat()
    assert (status, answer["error"]["code"]) == (500, "engine_error")


@pytest.mark.parametrize("stream", [False, True])
async def test_what_the_engine_refuses_is_a_bad_request(make_server, stream):
    async def script(request, on_output):
        on_output(
            EngineOutput(request_id=request.request_id, finish_reason="error", error="no such grammar", is_refusal=True)
        )

    server = await make_server(FakeBackend(script))
    status, answer = await server.chat(stream=stream)
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
    assert "no such grammar" in answer["error"]["message"]


async def test_a_request_over_the_time_limit_is_aborted(make_server):
    backend = FakeBackend(speak(["x"] * 10_000_000))
    server = await make_server(backend, request_timeout_s=0.05)
    status, answer = await server.chat()
    assert (status, answer["error"]["code"]) == (504, "deadline_exceeded")
    assert backend.running == 0
