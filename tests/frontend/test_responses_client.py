"""The unmodified `openai` client's Responses API against the frontend."""

from __future__ import annotations

import asyncio

import openai
import pydantic
import pytest
from fake_backend import FakeBackend, fail_after, hang_after, speak, speak_parsed
from fake_keys import FakeKeys, record

from hpcserve.errors import EngineError, Unavailable
from hpcserve.frontend.access.key_ring import KeyRing
from hpcserve.types import ParsedDelta, ToolCallDelta

TOOL = {
    "type": "function",
    "name": "weather",
    "description": "Ask",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": True,
}
AGENT = [
    ParsedDelta(reasoning="Hm"),
    ParsedDelta(reasoning="."),
    ParsedDelta(content="Let me "),
    ParsedDelta(content="see."),
    None,
    ParsedDelta(tool_calls=(ToolCallDelta(index=0, id="call-1", name="weather"),)),
    ParsedDelta(tool_calls=(ToolCallDelta(index=0, arguments='{"city": '),)),
    ParsedDelta(tool_calls=(ToolCallDelta(index=0, arguments='"Kyoto"}'),)),
    ParsedDelta(tool_calls=(ToolCallDelta(index=1, id="call-2", name="weather", arguments="{}"),)),
    ParsedDelta(reasoning_tokens=2),
]


@pytest.fixture
async def connect(make_server):
    """Makes a server and an asynchronous client for it."""
    clients = []

    async def connect(script=None, can=("generate",)):
        server = await make_server(FakeBackend(script, can=can))
        clients.append(openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0))
        return clients[-1], server

    yield connect
    for client in clients:
        await client.close()


@pytest.fixture
async def agent(connect):
    return await connect(speak_parsed(AGENT), can=("generate", "tools", "reasoning"))


async def test_the_synchronous_client_asks_and_streams(make_server):
    server = await make_server()

    def use() -> tuple[str, str]:
        with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
            answer = client.responses.create(model="mock", input="hi")
            with client.responses.stream(model="mock", input="hi") as stream:
                return answer.output_text, stream.get_final_response().output_text

    assert await asyncio.to_thread(use) == ("Hello world", "Hello world")


async def test_a_response_says_what_was_asked_and_what_it_took(connect):
    client, server = await connect()
    answer = await client.responses.create(
        model="mock",
        input="hi",
        instructions="Be brief.",
        max_output_tokens=5,
        temperature=0.5,
        metadata={"a": "b"},
        user="me",
        store=False,
    )
    assert answer.id.startswith("resp_")
    assert (answer.status, answer.error, answer.incomplete_details) == ("completed", None, None)
    assert answer.output_text == "Hello world"
    assert answer.output[0].status == "completed"
    assert (answer.instructions, answer.metadata, answer.user) == ("Be brief.", {"a": "b"}, "me")
    assert (answer.max_output_tokens, answer.temperature, answer.text.format.type) == (5, 0.5, "text")
    usage = answer.usage
    assert usage.input_tokens_details.cached_tokens == 3
    assert (usage.output_tokens, usage.output_tokens_details.reasoning_tokens) == (2, 0)
    assert usage.total_tokens == usage.input_tokens + 2
    assert server.backend.requests[0].sampling.max_tokens == 5
    assert answer._request_id


async def test_a_response_that_ran_out_of_tokens_is_incomplete(connect):
    client, _ = await connect(speak(["Once", " upon"], "length"))
    answer = await client.responses.create(model="mock", input="hi")
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert answer.output[0].status == "incomplete"
    stream = await client.responses.create(model="mock", input="hi", stream=True)
    last = [event async for event in stream][-1]
    assert last.type == "response.incomplete"
    assert (last.response.output_text, last.response.output[0].status) == ("Once upon", "incomplete")


async def test_plain_text_is_streamed_in_openais_order(connect):
    client, _ = await connect()
    stream = await client.responses.create(model="mock", input="hi", stream=True)
    events = [event async for event in stream]
    assert [each.type.removeprefix("response.") for each in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [each.sequence_number for each in events] == list(range(len(events)))
    assert [each.delta for each in events[4:6]] == ["Hello", " world"]
    assert events[6].text == events[8].item.content[0].text == events[9].response.output_text == "Hello world"
    assert len({each.item_id for each in events[3:8]} | {events[2].item.id, events[8].item.id}) == 1
    assert events[0].response.output == []
    assert events[0].response.usage is None
    assert events[9].response.usage.output_tokens == 2
    assert len({each.response.id for each in (events[0], events[1], events[9])}) == 1


async def test_reasoning_text_and_calls_are_items_of_one_response(agent):
    client, _ = agent
    answer = await client.responses.create(model="mock", input="weather?", tools=[TOOL])
    reasoning, message, *calls = answer.output
    assert (reasoning.content[0].text, reasoning.summary) == ("Hm.", [])
    assert message.content[0].text == "Let me see."
    assert [(each.call_id, each.name, each.arguments) for each in calls] == [
        ("call-1", "weather", '{"city": "Kyoto"}'),
        ("call-2", "weather", "{}"),
    ]
    assert answer.tools[0].name == "weather"
    assert answer.usage.output_tokens_details.reasoning_tokens == 2


async def test_streamed_items_are_those_of_the_response_in_one_piece(agent):
    client, _ = agent
    whole = await client.responses.create(model="mock", input="weather?", tools=[TOOL])
    async with client.responses.stream(model="mock", input="weather?", tools=[TOOL]) as stream:
        events = [event async for event in stream]
        final = await stream.get_final_response()

    def said(response) -> list[dict]:
        fields = {"id": True, "parsed_arguments": True}
        return [each.model_dump(exclude=fields, exclude_none=True) for each in response.output]

    assert said(final)[2:] == said(whole)[2:]
    assert [each.type for each in final.output] == [each.type for each in whole.output]
    assert final.output[0].content[0].text == "Hm."
    assert final.output_text == whole.output_text
    done = [each.item for each in events if each.type == "response.output_item.done"]
    assert [each.id for each in done] == [each.id for each in final.output]
    added = [each for each in events if each.type == "response.output_item.added"]
    assert [each.output_index for each in added] == [0, 1, 2, 3]
    assert [each.item.id for each in added] == [each.id for each in final.output]
    deltas = [each.delta for each in events if each.type == "response.reasoning_text.delta"]
    assert deltas == ["Hm", "."]
    arguments = [each.arguments for each in events if each.type == "response.function_call_arguments.done"]
    assert arguments == ['{"city": "Kyoto"}', "{}"]


async def test_the_output_with_what_the_functions_gave_is_the_next_input(agent, tokenizer):
    client, server = agent
    answer = await client.responses.create(model="mock", input="weather?", tools=[TOOL])
    given = [
        {"type": "function_call_output", "call_id": each.call_id, "output": "rain"}
        for each in answer.output
        if each.type == "function_call"
    ]
    again = await client.responses.create(
        model="mock", input=[{"role": "user", "content": "weather?"}, *answer.output, *given], tools=[TOOL]
    )
    assert again.status == "completed"
    prompt = tokenizer.decode(server.backend.requests[1].token_ids)
    assert "Let me see." in prompt
    assert prompt.count("rain") == 2


async def test_reasoning_can_be_left_out_and_calls_be_one_at_a_time(agent):
    client, _ = agent
    for stream in (False, True):
        answer = await client.responses.create(
            model="mock",
            input="weather?",
            tools=[TOOL],
            parallel_tool_calls=False,
            stream=stream,
            extra_body={"include_reasoning": False},
        )
        if stream:
            answer = [event async for event in answer][-1].response
        assert [each.type for each in answer.output] == ["message", "function_call"]


class City(pydantic.BaseModel):
    name: str
    people: int


async def test_an_answer_is_parsed_into_a_model(connect):
    client, server = await connect(speak(['{"name": "Kyoto",', '"people": 3}']), can=("generate", "structured_output"))
    answer = await client.responses.parse(model="mock", input="city?", text_format=City)
    assert answer.output_parsed == City(name="Kyoto", people=3)
    assert answer.text.format.name == "City"
    structured = server.backend.requests[0].sampling.structured
    assert structured.kind == "json_schema"
    assert pydantic.TypeAdapter(dict).validate_json(structured.value)["required"] == ["name", "people"]
    async with client.responses.stream(model="mock", input="city?", text_format=City) as stream:
        assert (await stream.get_final_response()).output_parsed.name == "Kyoto"


async def test_logprobs_come_where_they_are_included(connect):
    client, _ = await connect()
    asked = {
        "model": "mock",
        "input": "hi",
        "include": ["message.output_text.logprobs", "reasoning.encrypted_content"],
        "top_logprobs": 2,
    }
    answer = await client.responses.create(**asked)
    first, second = answer.output[0].content[0].logprobs
    assert (first.token, first.bytes, len(first.top_logprobs), second.token) == ("Hello", list(b"Hello"), 2, " world")
    events = [event async for event in await client.responses.create(**asked, stream=True)]
    streamed = [each.logprobs for each in events if each.type == "response.output_text.delta"]
    assert [(each[0].token, each[0].top_logprobs[1].token) for each in streamed] == [
        ("Hello", "alt1"),
        (" world", "alt1"),
    ]
    assert len(events[-1].response.output[0].content[0].logprobs) == 2


async def test_a_failure_in_the_middle_of_a_stream_is_its_last_event(connect):
    client, _ = await connect(fail_after(["one"], EngineError("the engine died")))
    events = [event async for event in await client.responses.create(model="mock", input="hi", stream=True)]
    assert events[-1].type == "response.failed"
    failed = events[-1].response
    assert (failed.status, failed.error.code, failed.error.message) == ("failed", "server_error", "the engine died")
    assert (failed.output[0].status, failed.output_text) == ("incomplete", "one")
    assert [each.sequence_number for each in events] == list(range(len(events)))


async def test_a_failure_before_the_first_delta_has_a_status(connect):
    client, _ = await connect(fail_after([], Unavailable("nobody is left")))
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError, match="nobody is left") as raised:
            await client.responses.create(model="mock", input="hi", stream=stream)
        assert raised.value.status_code == 503


async def test_closing_a_stream_early_aborts_the_request(connect):
    client, server = await connect(hang_after(["one"]))
    stream = await client.responses.create(model="mock", input="hi", stream=True)
    async for event in stream:
        if event.type == "response.output_text.delta":
            break
    await stream.close()
    await server.backend.until(lambda: len(server.backend.aborted) == 1)


async def test_tokens_are_counted_for_the_key_and_in_the_metrics(make_server):
    keys = FakeKeys(record("alice", "sk-alice", tokens_per_minute=5, models=("mock",)))
    server = await make_server(keys=KeyRing("sk-one", source=keys))
    async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="sk-alice", max_retries=0) as client:
        answer = await client.responses.create(model="mock", input="hi")
        with pytest.raises(openai.RateLimitError):
            await client.responses.create(model="mock", input="hi")
        with pytest.raises(openai.AuthenticationError):
            await client.with_options(api_key="wrong").responses.create(model="mock", input="hi")
    used = server.metrics.tenants["alice"]
    assert (used.prompt_tokens, used.generated_tokens) == (answer.usage.input_tokens, 2)
    assert server.metrics.generation_tokens == 2


async def test_errors_become_the_clients_exceptions(connect):
    client, _ = await connect()
    with pytest.raises(openai.NotFoundError) as missing:
        await client.responses.create(model="gpt-9", input="hi")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="set max_output_tokens to at most") as long:
        await client.responses.create(model="mock", input="hi", max_output_tokens=5000)
    assert (long.value.code, long.value.param) == ("context_length_exceeded", "max_output_tokens")
    with pytest.raises(openai.BadRequestError, match="previous_response_id") as unsupported:
        await client.responses.create(model="mock", input="hi", previous_response_id="resp_1")
    assert (unsupported.value.code, unsupported.value.param) == ("unsupported_parameter", "previous_response_id")
