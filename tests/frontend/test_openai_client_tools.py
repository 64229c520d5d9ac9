"""The unmodified `openai` client: tools, structured output and reasoning, with its helpers for them."""

from __future__ import annotations

import asyncio
import json

import openai
import pydantic
import pytest
from fake_backend import FakeBackend, speak, speak_parsed

from hpcserve.types import ParsedDelta, ToolCallDelta

MESSAGES = [{"role": "user", "content": "hi"}]
CALLS = [
    ParsedDelta(tool_calls=(ToolCallDelta(index=0, id="call-1", name="Weather"),)),
    ParsedDelta(tool_calls=(ToolCallDelta(index=0, arguments='{"city": '),)),
    ParsedDelta(tool_calls=(ToolCallDelta(index=0, arguments='"Kyoto"}'),)),
    None,
]


class Weather(pydantic.BaseModel):
    """Ask for the weather."""

    city: str


TOOLS = [openai.pydantic_function_tool(Weather)]
CAN = ("generate", "tools", "reasoning", "structured_output")


@pytest.fixture
async def connect(make_server):
    """Makes a server that can do everything, and an asynchronous client for it."""
    clients = []

    async def connect(script):
        server = await make_server(FakeBackend(script, can=CAN))
        clients.append(openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0))
        return clients[-1], server

    yield connect
    for client in clients:
        await client.close()


async def test_a_tool_is_called_and_its_result_sent_back(connect):
    client, server = await connect(speak_parsed(CALLS))
    answer = await client.chat.completions.create(model="mock", messages=MESSAGES, tools=TOOLS)
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    call = choice.message.tool_calls[0]
    assert (call.id, call.function.name, json.loads(call.function.arguments)) == (
        "call-1",
        "Weather",
        {"city": "Kyoto"},
    )
    result = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
    await client.chat.completions.create(model="mock", messages=[*MESSAGES, choice.message, result], tools=TOOLS)
    assert server.backend.requests[1].parsing.num_earlier_tool_calls == 1


async def test_calls_are_streamed_in_pieces(connect):
    client, _ = await connect(speak_parsed(CALLS))
    stream = await client.chat.completions.create(model="mock", messages=MESSAGES, tools=TOOLS, stream=True)
    pieces = [each for chunk in [chunk async for chunk in stream] for each in chunk.choices[0].delta.tool_calls or []]
    assert [each.id for each in pieces] == ["call-1", None, None]
    assert "".join(each.function.arguments or "" for each in pieces) == '{"city": "Kyoto"}'


async def test_the_stream_helper_puts_calls_together_and_parses_their_arguments(connect):
    client, _ = await connect(speak_parsed(CALLS))
    async with client.chat.completions.stream(model="mock", messages=MESSAGES, tools=TOOLS) as stream:
        kinds = {event.type async for event in stream}
        final = await stream.get_final_completion()
    assert {"tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds
    assert final.choices[0].message.tool_calls[0].function.parsed_arguments == Weather(city="Kyoto")


async def test_what_the_parse_helper_returned_can_be_sent_back(connect):
    client, _ = await connect(speak_parsed(CALLS))
    answer = await client.chat.completions.parse(model="mock", messages=MESSAGES, tools=TOOLS)
    message = answer.choices[0].message
    assert message.tool_calls[0].function.parsed_arguments == Weather(city="Kyoto")
    result = {"role": "tool", "tool_call_id": "call-1", "content": "rain"}
    again = await client.chat.completions.parse(model="mock", messages=[*MESSAGES, message, result], tools=TOOLS)
    assert again.choices[0].message.tool_calls


async def test_the_synchronous_client_calls_tools(make_server):
    server = await make_server(FakeBackend(speak_parsed(CALLS), can=CAN))

    def use() -> tuple[str, str]:
        with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
            answer = client.chat.completions.create(
                model="mock", messages=MESSAGES, tools=TOOLS, tool_choice="required"
            )
            with client.chat.completions.stream(model="mock", messages=MESSAGES, tools=TOOLS) as stream:
                final = stream.get_final_completion()
            return answer.choices[0].message.tool_calls[0].function.name, final.choices[0].finish_reason

    assert await asyncio.to_thread(use) == ("Weather", "tool_calls")


async def test_an_answer_is_parsed_into_a_model_of_the_callers(connect):
    client, server = await connect(speak_parsed([ParsedDelta(content='{"city": '), ParsedDelta(content='"Kyoto"}')]))
    answer = await client.chat.completions.parse(model="mock", messages=MESSAGES, response_format=Weather)
    assert answer.choices[0].message.parsed == Weather(city="Kyoto")
    structured = server.backend.requests[0].sampling.structured
    assert structured.kind == "json_schema"
    assert json.loads(structured.value)["properties"]["city"]["type"] == "string"
    async with client.chat.completions.stream(model="mock", messages=MESSAGES, response_format=Weather) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.parsed == Weather(city="Kyoto")


async def test_reasoning_reaches_a_client_under_both_names(connect):
    client, _ = await connect(
        speak_parsed([ParsedDelta(reasoning="Hm."), ParsedDelta(content="Yes", reasoning_tokens=1)])
    )
    answer = await client.chat.completions.create(model="mock", messages=MESSAGES, reasoning_effort="low")
    assert (answer.choices[0].message.reasoning, answer.choices[0].message.content) == ("Hm.", "Yes")
    assert answer.usage.completion_tokens_details.reasoning_tokens == 1
    stream = await client.chat.completions.create(model="mock", messages=MESSAGES, stream=True)
    streamed = [chunk.choices[0].delta async for chunk in stream]
    assert [getattr(each, "reasoning_content", None) for each in streamed] == [None, "Hm.", None]


async def test_vllms_extras_go_through_the_extra_body(connect):
    client, server = await connect(speak(["x"]))
    extra = {"structured_outputs": {"choice": ["x", "y"]}, "top_k": 3, "return_token_ids": True}
    answer = await client.completions.create(model="mock", prompt="hi", extra_body=extra)
    assert answer.choices[0].token_ids == [0]
    sampling = server.backend.requests[0].sampling
    assert (sampling.structured.kind, sampling.top_k) == ("choice", 3)


async def test_tools_without_a_parser_are_a_bad_request_that_says_what_to_set(make_server):
    server = await make_server()
    async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError, match=r"model\.tool_parser") as raised:
            await client.chat.completions.create(model="mock", messages=MESSAGES, tools=TOOLS)
    assert raised.value.param == "tools"
