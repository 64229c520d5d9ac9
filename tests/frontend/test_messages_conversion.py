"""What becomes of Anthropic's bodies, and which are refused."""

from __future__ import annotations

import pytest

from hpcserve.errors import BadRequest, Unsupported
from hpcserve.frontend.messages.conversion import chat_body_of
from hpcserve.frontend.messages.validation import parse_count_tokens, parse_messages
from hpcserve.frontend.schemas import ChatBody

USE = {"type": "tool_use", "id": "call_1", "name": "f", "input": {"a": [1]}}
TOOL = {"name": "f", "input_schema": {"properties": {}}}


def convert(*messages: dict, **fields: object) -> ChatBody:
    body = {"model": "m", "max_tokens": 2000, "messages": list(messages), **fields}
    return chat_body_of(parse_messages(body))


def rendered(*messages: dict, **fields: object) -> list[dict]:
    return [each.for_template() for each in convert(*messages, **fields).messages]


def user(content: object) -> dict:
    return {"role": "user", "content": content}


def text(content: str) -> dict:
    return {"type": "text", "text": content}


def test_a_system_prompt_comes_first_and_its_blocks_are_one_text():
    assert rendered(user("hi"), system="Be brief.") == [{"role": "system", "content": "Be brief."}, user("hi")]
    assert rendered(user("hi"), system=[text("Be "), text("brief.")])[0]["content"] == "Be brief."
    assert rendered(user("hi"), system=[]) == [user("hi")]


def test_what_differs_from_request_to_request_is_kept_out_of_the_prefix():
    system = [text("x-anthropic-billing-header: v=1; cch=abc"), text("Be brief.")]
    assert rendered(user("hi"), system=system)[0]["content"] == "Be brief."


def test_results_of_tools_precede_what_is_said_with_them():
    said = [
        text("And now?"),
        {"type": "tool_result", "tool_use_id": "call_1", "content": [text("a"), text("b")]},
        {"type": "tool_result", "tool_use_id": "call_2"},
    ]
    thinking = {"type": "thinking", "thinking": "hm", "signature": "s"}
    hidden = {"type": "redacted_thinking", "data": "xyz"}
    messages = rendered(user("hi"), {"role": "assistant", "content": [thinking, hidden, text("ok"), USE]}, user(said))
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": {"a": [1]}}}
    assert messages[1:] == [
        {"role": "assistant", "content": "ok", "tool_calls": [call], "reasoning": "hm", "reasoning_content": "hm"},
        {"role": "tool", "content": "a\nb", "tool_call_id": "call_1"},
        {"role": "tool", "content": "", "tool_call_id": "call_2"},
        user("And now?"),
    ]


def test_an_answer_that_was_begun_is_continued():
    chat = convert(user("hi"), {"role": "assistant", "content": "The answer is"})
    assert (chat.continue_final_message, chat.add_generation_prompt) == (True, False)
    chat = convert(user("hi"))
    assert (chat.continue_final_message, chat.add_generation_prompt) == (False, True)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "any"}, "required"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "f"}, {"type": "function", "function": {"name": "f"}}),
        (None, "auto"),
    ],
)
def test_choices_of_tools(choice, expected):
    assert convert(user("hi"), tools=[TOOL], tool_choice=choice).choice_of_tools() == expected


def test_a_tools_schema_is_of_an_object():
    assert convert(user("hi"), tools=[TOOL]).tools[0].function.parameters == {"type": "object", "properties": {}}


@pytest.mark.parametrize(
    ("fields", "effort"),
    [
        ({}, None),
        ({"output_config": {"effort": "high"}}, "high"),
        ({"output_config": {"effort": "high"}, "thinking": {"type": "disabled"}}, "none"),
        ({"thinking": {"type": "adaptive"}}, None),
    ],
)
def test_how_hard_to_think(fields, effort):
    assert convert(user("hi"), **fields).reasoning_effort == effort


def test_counting_takes_what_goes_into_the_prompt_only():
    body = {"model": "m", "messages": [user("hi")], "thinking": {"type": "enabled", "budget_tokens": 5000}}
    assert chat_body_of(parse_count_tokens(body)).messages[0].text == "hi"
    with pytest.raises(BadRequest, match="unknown field 'max_tokens'"):
        parse_count_tokens({**body, "max_tokens": 1})


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        ([user([{"type": "image", "source": {}}])], r"messages\[0\].content has a block of type 'image'"),
        ([user([{"type": "document"}])], "block of type 'document', which is not supported"),
        ([user([{"type": "server_tool_use"}])], "'server_tool_use'"),
        ([user([{"text": "no type"}])], "block of type 'None'"),
        ([user([{"type": ["text"]}])], "block of type"),
        ([user(["hi"])], r"messages\[0\]"),
        ([user(7)], "must be a string or a list of blocks"),
        ([user([USE])], "of role 'user' takes no block of type 'tool_use'"),
        ([{"role": "assistant", "content": [{"type": "tool_result", "tool_use_id": "x"}]}], "takes no block"),
        ([user([{"type": "tool_result", "tool_use_id": "x", "content": [{"type": "image"}]}])], "'image'"),
        ([user("hi"), {"role": "assistant", "content": [USE]}], "end with a tool_use block"),
        ([{"role": "assistant", "content": []}], "no content"),
        ([{"role": "tool", "content": "x"}], r"messages\[0\].role must be"),
        ([], "at least 1 item"),
    ],
)
def test_messages_that_are_refused(messages, match):
    with pytest.raises(BadRequest, match=match):
        convert(*messages)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"thinking": {"type": "enabled"}}, "needs budget_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, r"\(2000\) must be less than max_tokens"),
        ({"thinking": {"type": "disabled", "budget_tokens": 1024}}, "takes no budget_tokens"),
        ({"thinking": {"type": "between_tools"}}, "thinking.type must be"),
        ({"tool_choice": {"type": "tool"}, "tools": [TOOL]}, "needs a name"),
        ({"tool_choice": {"type": "auto", "name": "f"}, "tools": [TOOL]}, "takes no name"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, r"tools\[0\].type must be 'custom'"),
        ({"temprature": 1}, "did you mean 'temperature'"),
    ],
)
def test_fields_that_are_refused(fields, match):
    with pytest.raises(BadRequest, match=match):
        convert(user("hi"), **fields)


@pytest.mark.parametrize(
    "fields",
    [{"container": "c"}, {"speed": "fast"}, {"mcp_servers": [{}]}, {"context_management": {"edits": [{"type": "x"}]}}],
)
def test_what_only_anthropics_service_has_is_refused_by_name(fields):
    with pytest.raises(Unsupported, match=next(iter(fields))):
        convert(user("hi"), **fields)


@pytest.mark.real
@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore")  # of what vLLM imports
@pytest.mark.parametrize(
    "body",
    [
        {"messages": [user("hi")], "system": [text("a"), text("b")], "stop_sequences": ["x"], "top_k": 3},
        {
            "messages": [
                user("hi"),
                {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": ""}, USE]},
                user([{"type": "tool_result", "tool_use_id": "call_1", "content": "r"}, text("so?"), text("well?")]),
            ],
            "tools": [TOOL],
            "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        },
        {
            "messages": [user("hi"), {"role": "system", "content": "now"}, user([text("again")])],
            "tools": [{**TOOL, "description": "d", "strict": True}],
            "tool_choice": {"type": "tool", "name": "f"},
            "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}},
            "thinking": {"type": "disabled"},
        },
    ],
)
def test_the_chat_is_the_one_that_vllm_makes_of_the_same_body(body):
    from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
    from vllm.entrypoints.anthropic.serving import AnthropicServingMessages

    body = {"model": "m", "max_tokens": 7, **body}
    theirs = AnthropicServingMessages.to_chat_completion_request(AnthropicMessagesRequest(**body))
    ours = chat_body_of(parse_messages(body))
    again = ChatBody.model_validate(
        {
            "model": "m",
            "messages": [
                {name: value for name, value in each.items() if value is not None} for each in theirs.messages
            ],
        }
    )
    assert [each.for_template() for each in ours.messages] == [each.for_template() for each in again.messages]
    for name in ("max_tokens", "temperature", "top_p", "top_k", "reasoning_effort", "parallel_tool_calls"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert list(ours.stop) == list(theirs.stop or ())
    choice = theirs.tool_choice
    assert ours.choice_of_tools() == (choice if isinstance(choice, str) else choice.model_dump() if choice else "none")
    for mine, other in zip(ours.tools or (), theirs.tools or (), strict=True):
        function = other.function.model_dump(exclude_none=True)
        assert {name: each for name, each in mine.for_template()["function"].items() if each is not None} == function
    assert (ours.response_format is None) == (theirs.response_format is None)
