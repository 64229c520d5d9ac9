"""What the input of /v1/responses becomes: the conversation, and what engines are asked for."""

from __future__ import annotations

import pytest
from fake_backend import FakeBackend

from hpcserve.errors import BadRequest
from hpcserve.frontend.responses.conversion import chat_body_of
from hpcserve.frontend.responses.validation import parse_responses
from hpcserve.frontend.schemas import ChatBody

PATH = "/v1/responses"
TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
CALL = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Kyoto"}'}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "rain"}
THOUGHT = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]}


def said(text: str) -> dict:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": None}
    return {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [part]}


def chat_of(given: object = "hi", **fields: object) -> ChatBody:
    return chat_body_of(parse_responses({"model": "mock", "input": given, **fields}))


def templated(given: object, **fields: object) -> list[dict]:
    """Return what the chat template sees."""
    return [each.for_template() for each in chat_of(given, **fields).messages]


def test_a_string_is_what_the_user_says_after_the_instructions():
    assert templated("hi", instructions="Be brief.") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi"},
    ]


@pytest.mark.parametrize("kind", [{}, {"type": "message"}, {"type": None}], ids=str)
@pytest.mark.parametrize("content", ["hi", [{"type": "input_text", "text": "hi"}]], ids=["string", "parts"])
def test_messages_come_with_and_without_a_type(kind, content):
    roles = ("system", "developer", "user")
    given = [{**kind, "role": role, "content": content} for role in roles]
    assert templated(given) == [{"role": role, "content": "hi"} for role in roles]


def test_reasoning_text_and_calls_of_one_turn_are_one_message():
    messages = templated([{"role": "user", "content": "weather?"}, THOUGHT, said("Let me see."), CALL, CALL, OUTPUT])
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Kyoto"}}}
    assert messages == [
        {"role": "user", "content": "weather?"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "tool_calls": [call, call],
            "reasoning": "Hm.",
            "reasoning_content": "Hm.",
        },
        {"role": "tool", "content": "rain", "tool_call_id": "c1"},
    ]


def test_what_an_assistant_said_twice_stays_two_messages():
    assert [each["content"] for each in templated([said("one"), said("two")])] == ["one", "two"]


def test_outputs_of_functions_may_come_in_parts():
    parts = [{"type": "input_text", "text": "rain"}, {"type": "input_text", "text": "wind"}]
    assert templated([CALL, {**OUTPUT, "output": parts}])[-1]["content"] == "rain\nwind"


def test_a_summary_stands_for_reasoning_that_is_not_there():
    item = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "In short"}]}
    assert templated([item])[0]["reasoning"] == "In short"


@pytest.mark.parametrize("status", ["incomplete", "in_progress"])
def test_an_answer_that_is_not_complete_is_continued(status):
    chat = chat_of([{"role": "user", "content": "hi"}, {**said("Once"), "status": status}])
    assert (chat.continue_final_message, chat.add_generation_prompt) == (True, False)
    chat = chat_of([{**said("Once"), "status": status}, {"role": "user", "content": "go on"}])
    assert (chat.continue_final_message, chat.add_generation_prompt) == (False, True)


async def test_continued_text_is_the_end_of_the_prompt(server, tokenizer):
    given = [{"role": "user", "content": "hi"}, {**said("Once upon"), "status": "incomplete"}]
    status, _ = await server.post(PATH, {"model": "mock", "input": given})
    assert status == 200
    assert tokenizer.decode(server.backend.requests[0].token_ids).endswith("Once upon")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, ("json_object", "")),
        ({"type": "json_schema", "name": "n", "schema": {"type": "object"}}, ("json_schema", '{"type":"object"}')),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_the_format_of_text_is_what_engines_get(make_server, given, expected):
    server = await make_server(FakeBackend(can=("generate", "structured_output")))
    status, answer = await server.post(PATH, {"model": "mock", "input": "x", "text": {"format": given}})
    assert status == 200
    assert answer["text"]["format"]["type"] == given["type"]
    structured = server.backend.requests[0].sampling.structured
    assert (None if structured is None else (structured.kind, structured.value)) == expected


async def test_fields_of_sampling_reach_the_engine(server):
    fields = {
        "max_output_tokens": 7,
        "temperature": 0.1,
        "top_p": 0.2,
        "top_k": 3,
        "min_p": 0.4,
        "seed": 5,
        "presence_penalty": 0.6,
        "frequency_penalty": 0.7,
        "repetition_penalty": 1.8,
        "logit_bias": {"5": 1.5},
        "stop": "end",
        "stop_token_ids": [9],
        "ignore_eos": True,
        "skip_special_tokens": False,
        "include_stop_str_in_output": True,
        "cache_salt": "mine",
        "priority": 4,
    }
    status, _ = await server.post(PATH, {"model": "mock", "input": "x", **fields})
    assert status == 200
    request = server.backend.requests[0]
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.top_k) == (7, 0.1, 0.2, 3)
    assert (sampling.min_p, sampling.seed, sampling.presence_penalty) == (0.4, 5, 0.6)
    assert (sampling.frequency_penalty, sampling.repetition_penalty, sampling.logit_bias) == (0.7, 1.8, {5: 1.5})
    assert (sampling.stop, sampling.stop_token_ids) == (("end",), (9,))
    assert (sampling.ignore_eos, sampling.skip_special_tokens, sampling.include_stop) == (True, False, True)
    assert (request.cache_salt, request.priority) == ("mine", 4)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, "auto"),
        ("none", "none"),
        ("required", "required"),
        ({"type": "function", "name": "weather"}, {"type": "function", "function": {"name": "weather"}}),
    ],
    ids=str,
)
async def test_the_choice_of_tools_is_that_of_a_chat(choice, expected):
    assert chat_of(tools=[TOOL], tool_choice=choice).choice_of_tools() == expected


def test_effort_keys_and_sessions_are_passed_on():
    chat = chat_of(reasoning={"effort": "low", "summary": "auto"}, prompt_cache_key="k", chat_template_kwargs={"x": 1})
    assert (chat.reasoning_effort, chat.prompt_cache_key, chat.chat_template_kwargs) == ("low", "k", {"x": 1})
    assert chat_of(prompt_cache_key="k", session_id="s").prompt_cache_key == "s"


async def test_a_session_is_told_to_the_router(server):
    await server.post(PATH, {"model": "mock", "input": "x", "prompt_cache_key": "k"})
    assert server.backend.callers[0].session == "k"


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"input": []}, "input", "at least one item"),
        ({"input": 5}, "input", "must be a string or a list of items"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input", "an item of type 'item_reference'"),
        ({"input": [{"type": "computer_call"}]}, "input", "an item of type 'computer_call'"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].message.content",
            "a part of type 'input_image'",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "output_text", "text": "x"}]}]},
            "input[0].message",
            "takes no part of type 'output_text'",
        ),
        ({"input": [{**THOUGHT, "encrypted_content": "x"}]}, "input[0].reasoning.encrypted_content", "unknown field"),
        ({"input": [{**THOUGHT, "status": "incomplete"}]}, "input", "cannot be continued"),
        ({"tools": [{"type": "web_search"}]}, "tools", "a tool of type 'web_search'"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice", "must be 'none', 'auto'"),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice", "none of the tools"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format", "needs schema"),
        ({"text": {"format": {"type": "json_object"}}}, "text.format", "text.format is not supported"),
        ({"text": {"verbosity": "low"}}, "text.verbosity", "must be 'medium'"),
        ({"top_logprobs": 2}, "top_logprobs", "needs 'message.output_text.logprobs' in include"),
        ({"include": ["x"]}, "include[0]", "must be"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "leave it out"),
        ({"conversation": "conv_1"}, "conversation", "leave it out"),
        ({"prompt": {"id": "x"}}, "prompt", "leave it out"),
        ({"store": True}, "store", "only False is accepted"),
        ({"background": True}, "background", "only False is accepted"),
        ({"service_tier": "flex"}, "service_tier", "must be 'auto' or 'default'"),
        ({"truncation": "sometimes"}, "truncation", "must be"),
        ({"max_tokens": 5}, "max_tokens", "unknown field"),
        ({"max_output_tokens": 2000}, "max_output_tokens", "max_output_tokens 2000"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_what_is_not_served_is_refused_by_the_name_of_its_field(server, fields, param, message):
    status, answer = await server.post(PATH, {"model": "mock", "input": "x", **fields})
    assert (status, answer["error"]["param"]) == (400, param)
    assert message in answer["error"]["message"]
    assert server.backend.requests == []


async def test_tools_need_a_parser(server):
    status, answer = await server.post(PATH, {"model": "mock", "input": "x", "tools": [TOOL]})
    assert (status, answer["error"]["param"]) == (400, "tools")


async def test_fields_that_ask_for_nothing_are_taken(server):
    fields = {
        "store": False,
        "background": False,
        "tools": [],
        "tool_choice": "auto",
        "include": ["reasoning.encrypted_content"],
        "reasoning": {"summary": "auto"},
        "text": {"verbosity": "medium"},
        "truncation": "disabled",
        "stream_options": None,
        "previous_response_id": None,
        "max_tool_calls": 5,
        "safety_identifier": "x",
        "prompt_cache_retention": "24h",
    }
    status, answer = await server.post(PATH, {"model": "mock", "input": "x", **fields})
    assert (status, answer["store"]) == (200, False)


async def test_what_text_looks_like_is_said_once(make_server):
    server = await make_server(FakeBackend(can=("generate", "structured_output")))
    twice = {"text": {"format": {"type": "json_object"}}, "structured_outputs": {"regex": "a"}}
    status, answer = await server.post(PATH, {"model": "mock", "input": "x", **twice})
    assert status == 400
    assert answer["error"]["message"] == "send either text.format or structured_outputs, not both"


def test_seeds_out_of_range_are_refused():
    with pytest.raises(BadRequest, match="seed"):
        chat_of(seed=2**63)
