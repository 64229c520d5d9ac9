"""Chats with tools and reasoning: what engines are asked for, and what clients get of what the parsers made."""

from __future__ import annotations

import json

import pytest
from fake_backend import FakeBackend, speak, speak_parsed

from hpcserve.types import ChatParsing, ParsedDelta, ToolCallDelta

CHAT = "/v1/chat/completions"
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Ask", "parameters": PARAMETERS}}
NAMED = {"type": "function", "function": {"name": "weather"}}
BODY = {"model": "mock", "messages": [{"role": "user", "content": "hi"}], "tools": [TOOL]}
CALLS = [
    ParsedDelta(content="Let me see."),
    None,
    ParsedDelta(tool_calls=(ToolCallDelta(index=0, id="call-1", name="weather"),)),
    ParsedDelta(tool_calls=(ToolCallDelta(index=0, arguments='{"city": '),)),
    ParsedDelta(tool_calls=(ToolCallDelta(index=0, arguments='"Kyoto"}'),)),
    ParsedDelta(tool_calls=(ToolCallDelta(index=1, id="call-2", name="weather", arguments="{}"),)),
    None,
]
THOUGHTS = [ParsedDelta(reasoning="Hm"), ParsedDelta(reasoning="."), ParsedDelta(content="Yes", reasoning_tokens=2)]


@pytest.fixture
async def caller(make_server):
    return await make_server(FakeBackend(speak_parsed(CALLS), can=("generate", "tools")))


@pytest.fixture
async def thinker(make_server):
    return await make_server(FakeBackend(speak_parsed(THOUGHTS), can=("generate", "reasoning")))


def choices_of(events: list[str]) -> list[dict]:
    return [json.loads(event)["choices"][0] for event in events[:-1]]


async def test_the_engine_is_told_how_to_parse(caller):
    earlier = [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f"}}],
        },
        {"role": "tool", "tool_call_id": "a", "content": "rain"},
    ]
    await caller.chat(
        tools=[TOOL],
        messages=[*BODY["messages"], *earlier],
        tool_choice="required",
        parallel_tool_calls=False,
        reasoning_effort="low",
        chat_template_kwargs={"x": 1},
    )
    assert caller.backend.requests[0].parsing == ChatParsing(
        streams=False,
        tools=(TOOL,),
        tool_choice="required",
        parallel_tool_calls=False,
        template_kwargs={"x": 1, "enable_thinking": True, "reasoning_effort": "low"},
        num_earlier_tool_calls=1,
    )


@pytest.mark.parametrize(("given", "expected"), [(None, "auto"), ("auto", "auto"), (NAMED, NAMED)])
async def test_the_choice_of_tools_is_automatic_unless_the_request_says_otherwise(caller, given, expected):
    await caller.chat(tools=[TOOL], tool_choice=given)
    assert caller.backend.requests[0].parsing.tool_choice == expected


async def test_without_tools_to_call_nothing_is_parsed(make_server):
    server = await make_server(FakeBackend(can=("generate", "tools")))
    for fields in ({}, {"tools": [TOOL], "tool_choice": "none"}):
        _, answer = await server.chat(**fields)
        assert answer["choices"][0]["message"]["content"] == "Hello world"
    assert [each.parsing for each in server.backend.requests] == [None, None]


async def test_a_message_has_the_calls_in_vllms_fields_and_order(caller):
    status, answer = await caller.post(CHAT, BODY)
    assert status == 200
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    message = choice["message"]
    assert list(message) == [
        "role", "content", "refusal", "annotations", "audio", "function_call", "tool_calls", "reasoning"
    ]  # fmt: skip
    assert message["content"] == "Let me see."
    assert message["tool_calls"] == [
        {"id": "call-1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Kyoto"}'}},
        {"id": "call-2", "type": "function", "function": {"name": "weather", "arguments": "{}"}},
    ]


async def test_a_stream_has_the_calls_in_pieces_and_no_event_where_there_is_nothing_to_show(caller):
    choices = choices_of(await caller.stream(CHAT, BODY))
    assert [choice["delta"] for choice in choices] == [
        {"role": "assistant", "content": ""},
        {"content": "Let me see."},
        {"tool_calls": [{"id": "call-1", "type": "function", "index": 0, "function": {"name": "weather"}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"city": '}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"Kyoto"}'}}]},
        {
            "tool_calls": [
                {"id": "call-2", "type": "function", "index": 1, "function": {"name": "weather", "arguments": "{}"}}
            ]
        },
        {},
    ]
    assert [choice["finish_reason"] for choice in choices] == [None] * 6 + ["tool_calls"]


async def test_one_call_only_where_no_parallel_ones_are_wanted(caller):
    _, answer = await caller.post(CHAT, {**BODY, "parallel_tool_calls": False})
    assert [each["id"] for each in answer["choices"][0]["message"]["tool_calls"]] == ["call-1"]
    choices = choices_of(await caller.stream(CHAT, {**BODY, "parallel_tool_calls": False}))
    indices = {each["index"] for choice in choices for each in choice["delta"].get("tool_calls", ())}
    assert indices == {0}


@pytest.mark.parametrize(
    ("choice", "finish", "whole", "streamed"),
    [
        ("auto", "length", "tool_calls", "length"),  # as vLLM has it
        ("required", "stop", "tool_calls", "tool_calls"),
        ("required", "length", "length", "length"),
        (NAMED, "stop", "stop", "stop"),
    ],
)
async def test_the_finish_reason_is_tool_calls_exactly_when_it_is_with_vllm(
    make_server, choice, finish, whole, streamed
):
    server = await make_server(FakeBackend(speak_parsed(CALLS, finish), can=("generate", "tools")))
    _, answer = await server.post(CHAT, {**BODY, "tool_choice": choice})
    assert answer["choices"][0]["finish_reason"] == whole
    assert choices_of(await server.stream(CHAT, {**BODY, "tool_choice": choice}))[-1]["finish_reason"] == streamed


async def test_a_call_that_had_to_be_made_comes_with_empty_content(make_server):
    server = await make_server(FakeBackend(speak_parsed(CALLS[2:]), can=("generate", "tools")))
    for choice, content in (("auto", None), ("required", ""), (NAMED, "")):
        _, answer = await server.post(CHAT, {**BODY, "tool_choice": choice})
        assert answer["choices"][0]["message"]["content"] == content


async def test_token_ids_and_logprobs_come_even_where_there_is_nothing_to_show_yet(caller):
    for fields in ({"return_token_ids": True}, {"logprobs": True}):
        choices = choices_of(await caller.stream(CHAT, {**BODY, **fields}))
        assert len(choices) == 1 + len(CALLS)
        assert choices[2]["delta"] == {}


async def test_reasoning_is_apart_from_content_under_both_of_its_names(thinker):
    _, answer = await thinker.chat()
    message = answer["choices"][0]["message"]
    assert (message["content"], message["reasoning"], message["reasoning_content"]) == ("Yes", "Hm.", "Hm.")
    assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": 2}
    body = {"model": "mock", "messages": BODY["messages"], "stream_options": {"include_usage": True}}
    *events, usage, done = await thinker.stream(CHAT, body)
    assert [choice["delta"] for choice in choices_of([*events, done])][1:] == [
        {"reasoning": "Hm", "reasoning_content": "Hm"},
        {"reasoning": ".", "reasoning_content": "."},
        {"content": "Yes"},
    ]
    assert json.loads(usage)["usage"]["completion_tokens_details"] == {"reasoning_tokens": 2}


async def test_hidden_reasoning_leaks_through_no_token(thinker):
    thinker.backend.script = speak_parsed([None, None, ParsedDelta(content="Yes")])
    fields = {"include_reasoning": False, "logprobs": True, "return_token_ids": True}
    _, answer = await thinker.chat(**fields)
    choice = answer["choices"][0]
    assert (choice["logprobs"], choice["token_ids"], choice["message"]["reasoning"]) == (None, None, None)
    assert thinker.backend.requests[0].parsing.include_reasoning is False
    choices = choices_of(await thinker.stream(CHAT, {"model": "mock", "messages": BODY["messages"], **fields}))
    assert [(each["delta"], each["logprobs"], each.get("token_ids")) for each in choices[1:]] == [
        ({"content": "Yes"}, None, None)
    ]


async def test_a_choice_that_streams_nothing_but_calls_is_told_apart_from_one_that_streams_text(make_server):
    async def script(request, on_output):
        calls = request.request_id.endswith("-1")
        await speak_parsed(CALLS if calls else [ParsedDelta(content="no")])(request, on_output)

    server = await make_server(FakeBackend(script, can=("generate", "tools")))
    choices = choices_of(await server.stream(CHAT, {**BODY, "n": 2}))
    reasons = {each["index"]: each["finish_reason"] for each in choices if each["finish_reason"]}
    assert reasons == {0: "stop", 1: "tool_calls"}


async def test_all_ready_engines_must_be_able(make_server):
    from fake_backend import ready_status, worker

    server = await make_server(FakeBackend(speak(["x"])))
    server.backend.now = ready_status(workers=(worker(can=("generate", "tools")), worker(name="both-1-b")))
    status, answer = await server.post(CHAT, BODY)
    assert (status, answer["error"]["code"]) == (400, "unsupported_parameter")


async def test_a_conversation_with_calls_reaches_the_template(make_server, tmp_path):
    from test_tokenizing import model_dir

    from hpcserve.frontend.prompts.tokenizer import Tokenizer

    source = (
        "{{ tools[0].function.name }}{% for m in messages %}[{{ m.role }}|{{ m.content }}"
        "{% for c in m.tool_calls or [] %}|{{ c.id }}:{{ c.function.arguments.city }}{% endfor %}"
        "|{{ m.tool_call_id }}|{{ m.reasoning_content }}]{% endfor %}"
    )
    tokenizer = Tokenizer.load(model_dir(tmp_path, tokenizer_config={"chat_template": source}))
    server = await make_server(FakeBackend(speak_parsed([None]), can=("generate", "tools")), own_tokenizer=tokenizer)
    call = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Kyoto"}'}}
    messages = [
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "why"},
        {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "rain"}]},
    ]
    status, _ = await server.post(CHAT, {**BODY, "messages": messages})
    assert status == 200
    rendered = tokenizer.decode(server.backend.requests[0].token_ids)
    assert rendered == "weather[assistant||a:Kyoto||why][tool|rain|a|]"
    tokenizer.close()
