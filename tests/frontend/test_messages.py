"""The unmodified `anthropic` client against /v1/messages."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Union

import msgspec
import pytest
from fake_backend import FakeBackend, hang_after, speak
from message_scripts import BLOCKS, CALL, CALL_IN_ONE, HI, WEATHER, able_backend, parse, stop_at, tool_piece

from hpcserve.types import ParsedDelta

if TYPE_CHECKING:
    import anthropic


def shown(message: anthropic.types.Message) -> list[dict]:
    blocks = [each.model_dump(exclude_unset=True) for each in message.content]
    for each in blocks:
        assert each.pop("signature", "some")
    return blocks


async def test_a_message_has_content_usage_and_ids(connect_anthropic):
    client, server = await connect_anthropic(FakeBackend())
    message = await client.messages.create(
        model="mock",
        max_tokens=7,
        messages=HI,
        system="Be brief.",
        stop_sequences=["END"],
        extra_body={"temperature": 0.5, "top_p": 0.9, "top_k": 4},  # known to older versions of the client
        metadata={"user_id": "somebody"},
        service_tier="auto",
        cache_control={"type": "ephemeral"},
    )
    assert shown(message) == [{"type": "text", "text": "Hello world"}]
    assert (message.role, message.model, message.type) == ("assistant", "mock", "message")
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    request = server.backend.requests[0]
    assert message.id.startswith("msg_")
    assert message.id[4:] in request.request_id
    assert message._request_id
    usage = message.usage
    assert (usage.cache_read_input_tokens, usage.cache_creation_input_tokens, usage.output_tokens) == (3, 0, 2)
    assert usage.input_tokens + usage.cache_read_input_tokens == len(request.token_ids)
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.stop, sampling.top_k) == (7, ("END",), 4)
    assert (sampling.temperature, sampling.top_p) == (0.5, 0.9)


async def test_the_synchronous_client_creates_streams_and_counts(make_server):
    server = await make_server()

    def use() -> tuple[str, str, int]:
        import anthropic

        with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
            message = client.messages.create(model="mock", max_tokens=5, messages=HI)
            with client.messages.stream(model="mock", max_tokens=5, messages=HI) as stream:
                text = "".join(stream.text_stream)
            count = client.messages.count_tokens(model="mock", messages=HI)
            return message.content[0].text, text, count.input_tokens

    said, streamed, count = await asyncio.to_thread(use)
    assert said == streamed == "Hello world"
    assert count == len(server.backend.requests[0].token_ids) == len(server.backend.requests[1].token_ids)


async def test_a_streamed_message_ends_as_the_same_message(connect_anthropic):
    client, server = await connect_anthropic(FakeBackend(speak(["Hello", "", " wörld\n"])))
    async with client.messages.stream(model="mock", max_tokens=5, messages=HI) as stream:
        pieces = [text async for text in stream.text_stream]
        message = await stream.get_final_message()
    assert pieces == ["Hello", " wörld\n"]
    assert shown(message) == [{"type": "text", "text": "Hello wörld\n"}]
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    usage = message.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == len(server.backend.requests[0].token_ids)
    assert (usage.cache_read_input_tokens, usage.output_tokens) == (3, 3)
    assert stream.response.headers["request-id"] == stream.response.headers["x-request-id"]


async def test_raw_events_come_in_anthropics_order(connect_anthropic):
    client, _ = await connect_anthropic()
    stream = await client.messages.create(model="mock", max_tokens=5, messages=HI, stream=True)
    events = [event async for event in stream]
    assert [event.type for event in events] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert events[0].message.stop_reason is None
    assert events[0].message.content == []
    assert events[0].message.usage.cache_read_input_tokens == 3


@pytest.mark.parametrize("streams", [False, True])
async def test_reasoning_text_and_tool_calls_become_blocks(connect_anthropic, streams):
    client, server = await connect_anthropic(able_backend(parse(CALL, CALL_IN_ONE)))
    fields = {
        "model": "mock",
        "max_tokens": 500,
        "messages": HI,
        "tools": [WEATHER],
        "tool_choice": {"type": "auto"},
    }
    if streams:
        async with client.messages.stream(**fields) as stream:
            message = await stream.get_final_message()
    else:
        message = await client.messages.create(**fields)
    assert shown(message) == BLOCKS
    assert message.stop_reason == "tool_use"
    assert message.usage.output_tokens_details.thinking_tokens == 2
    parsing = server.backend.requests[0].parsing
    assert parsing.streams is streams
    assert parsing.tool_choice == "auto"
    assert parsing.tools[0]["function"]["name"] == "weather"
    assert parsing.tools[0]["function"]["parameters"] == WEATHER["input_schema"]


async def test_what_the_model_answered_can_be_sent_back_with_results(connect_anthropic):
    client, server = await connect_anthropic(able_backend(parse(CALL, CALL_IN_ONE)))
    first = await client.messages.create(model="mock", max_tokens=50, messages=HI, tools=[WEATHER])
    results = [
        {"type": "tool_result", "tool_use_id": "call_1", "content": [{"type": "text", "text": "rain"}]},
        {"type": "tool_result", "tool_use_id": "call_2", "content": "sun", "is_error": False},
        {"type": "text", "text": "And now?", "cache_control": {"type": "ephemeral"}},
    ]
    messages = [*HI, first.to_param(), {"role": "user", "content": results}]
    await client.messages.create(model="mock", max_tokens=50, messages=messages, tools=[WEATHER])
    assert server.backend.requests[1].parsing.num_earlier_tool_calls == 2


@pytest.mark.parametrize("streams", [False, True])
async def test_one_call_is_left_where_parallel_calls_are_disabled(connect_anthropic, streams):
    client, server = await connect_anthropic(able_backend(parse(CALL, CALL_IN_ONE)))
    choice = {"type": "any", "disable_parallel_tool_use": True}
    async with client.messages.stream(
        model="mock", max_tokens=50, messages=HI, tools=[WEATHER], tool_choice=choice
    ) as stream:
        message = await stream.get_final_message()
    assert shown(message) == BLOCKS[:3]
    assert server.backend.requests[0].parsing.tool_choice == "required"


@pytest.mark.parametrize("streams", [False, True])
async def test_thinking_is_left_out_where_the_client_wants_none_of_it(connect_anthropic, streams):
    client, _server = await connect_anthropic(able_backend(parse(CALL, CALL_IN_ONE), context=8000))
    thinking = {"type": "enabled", "budget_tokens": 1024, "display": "omitted"}
    fields = {"model": "mock", "max_tokens": 2000, "messages": HI, "tools": [WEATHER], "thinking": thinking}
    if streams:
        async with client.messages.stream(**fields) as stream:
            message = await stream.get_final_message()
    else:
        message = await client.messages.create(**fields)
    assert shown(message) == BLOCKS[1:]


async def test_text_after_a_tool_call_gets_a_block_of_its_own(connect_anthropic):
    deltas = (
        ParsedDelta(tool_calls=(tool_piece(0, "call_1", "weather", '{"city"'),)),
        ParsedDelta(content="meanwhile"),
        ParsedDelta(tool_calls=(tool_piece(0, arguments=': "Oslo"}'),)),
    )
    client, _ = await connect_anthropic(able_backend(parse(deltas, CALL_IN_ONE)))
    async with client.messages.stream(model="mock", max_tokens=50, messages=HI, tools=[WEATHER]) as stream:
        message = await stream.get_final_message()
    assert shown(message) == [
        {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Oslo"}},
        {"type": "text", "text": "meanwhile"},
    ]


@pytest.mark.parametrize("streams", [False, True])
async def test_a_stop_sequence_is_told_and_a_stop_token_is_not(connect_anthropic, streams):
    client, server = await connect_anthropic()
    for stop_reason, expected in (("END", ("stop_sequence", "END")), (2, ("end_turn", None))):
        server.backend.script = stop_at("so far", stop_reason)
        async with client.messages.stream(model="mock", max_tokens=5, messages=HI, stop_sequences=["END"]) as stream:
            message = await stream.get_final_message()
        if not streams:
            message = await client.messages.create(model="mock", max_tokens=5, messages=HI, stop_sequences=["END"])
        assert (message.stop_reason, message.stop_sequence) == expected


async def test_running_out_of_tokens_is_told_even_inside_a_tool_call(connect_anthropic):
    cut = (ParsedDelta(tool_calls=(tool_piece(0, "call_1", "weather", '{"city": "Par'),)),)
    client, _ = await connect_anthropic(able_backend(parse(cut, cut[0], "length")))
    message = await client.messages.create(model="mock", max_tokens=5, messages=HI, tools=[WEATHER])
    assert message.stop_reason == "max_tokens"
    assert message.content[0].name == "weather"
    client, _ = await connect_anthropic(FakeBackend(speak(["a"], "length")))
    assert (await client.messages.create(model="mock", max_tokens=1, messages=HI)).stop_reason == "max_tokens"


async def test_a_stop_sequence_inside_a_tool_call_is_no_call_to_run(connect_anthropic):
    cut = (ParsedDelta(tool_calls=(tool_piece(0, "call_1", "weather", '{"city": "'),)),)
    client, _ = await connect_anthropic(able_backend(parse(cut, cut[0], "stop", "Par")))
    stream = await client.messages.create(model="mock", max_tokens=5, messages=HI, tools=[WEATHER], stream=True)
    endings = [event.delta async for event in stream if event.type == "message_delta"]
    assert [(each.stop_reason, each.stop_sequence) for each in endings] == [("stop_sequence", "Par")]


@pytest.mark.parametrize("streams", [False, True])
async def test_an_answer_without_a_word_has_an_empty_block(connect_anthropic, streams):
    client, _ = await connect_anthropic(FakeBackend(speak([""])))
    if streams:
        async with client.messages.stream(model="mock", max_tokens=5, messages=HI) as stream:
            message = await stream.get_final_message()
    else:
        message = await client.messages.create(model="mock", max_tokens=5, messages=HI)
    assert shown(message) == [{"type": "text", "text": ""}]


async def test_a_schema_for_the_answer_reaches_the_engine(connect_anthropic):
    client, server = await connect_anthropic(
        able_backend(parse((ParsedDelta(content="{}"),), ParsedDelta(content="{}")))
    )
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    config = {"format": {"type": "json_schema", "schema": schema}, "effort": "low"}
    await client.messages.create(model="mock", max_tokens=5, messages=HI, output_config=config)
    request = server.backend.requests[0]
    assert request.sampling.structured.kind == "json_schema"
    assert msgspec.json.decode(request.sampling.structured.value) == schema
    assert request.parsing.template_kwargs["reasoning_effort"] == "low"


async def test_tokens_are_counted_with_system_and_tools_and_nothing_is_generated(connect_anthropic):
    client, server = await connect_anthropic()
    plain = await client.messages.count_tokens(model="mock", messages=HI)
    more = await client.messages.count_tokens(model="mock", messages=HI, system="Be brief.", tools=[WEATHER])
    assert more.input_tokens >= plain.input_tokens + len("Be brief.")
    assert server.backend.requests == []


async def test_a_hundred_streams_at_once(connect_anthropic):
    client, server = await connect_anthropic(FakeBackend(speak(["x"] * 20)))

    async def ask() -> str:
        async with client.messages.stream(model="mock", max_tokens=50, messages=HI) as stream:
            return (await stream.get_final_message()).content[0].text

    assert await asyncio.gather(*(ask() for _ in range(100))) == ["x" * 20] * 100
    assert server.backend.running == 0


async def test_closing_a_stream_early_aborts_the_request(connect_anthropic):
    client, server = await connect_anthropic(FakeBackend(hang_after(["one"])))
    async with client.messages.stream(model="mock", max_tokens=5, messages=HI) as stream:
        async for text in stream.text_stream:
            assert text == "one"
            break
    await server.backend.until(lambda: len(server.backend.aborted) == 1)


async def test_every_event_is_as_described_and_named_after_its_type(make_server):
    from hpcserve.frontend.messages.replies import EVENTS

    server = await make_server(able_backend(parse(CALL, CALL_IN_ONE)))
    body = {"model": "mock", "max_tokens": 50, "messages": HI, "tools": [WEATHER], "stream": True}
    async with server.http.post(f"{server.url}/v1/messages", json=body) as response:
        events = (await response.text()).removesuffix("\n\n").split("\n\n")
    kinds = set()
    for event in events:
        name, data = event.split("\n")
        value = msgspec.json.decode(data.removeprefix("data: "), type=Union[EVENTS])  # noqa: UP007 (a tuple)
        kinds.add(type(value))
        assert name == f"event: {msgspec.json.decode(data.removeprefix('data: '))['type']}"
    assert len(kinds) == len(EVENTS) - 1  # no error
