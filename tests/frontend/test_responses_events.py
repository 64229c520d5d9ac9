"""The events of a streamed response: what they hold, and that items follow each other whatever engines emit."""

from __future__ import annotations

from typing import Union

import msgspec
import pytest
from fake_backend import FakeBackend, speak_parsed

from hpcserve.frontend.responses import event_replies
from hpcserve.types import ParsedDelta, ToolCallDelta

TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}}
ANY_EVENT = Union[event_replies.EVENTS]  # noqa: UP007 (made of a tuple)


def call(index: int, *, name: str | None = None, arguments: str | None = None) -> ParsedDelta:
    piece = ToolCallDelta(index=index, id=f"c{index}" if name else None, name=name, arguments=arguments)
    return ParsedDelta(tool_calls=(piece,))


async def events_of(make_server, deltas: list[ParsedDelta | None], finish: str = "stop", **fields: object) -> list:
    """Return the decoded events, once it is sure that they are sent as they are described."""
    server = await make_server(FakeBackend(speak_parsed(deltas, finish), can=("generate", "tools", "reasoning")))
    body = {"model": "mock", "input": "x", "tools": [TOOL], "stream": True, **fields}
    async with server.http.post(server.url + "/v1/responses", json=body) as response:
        assert response.status == 200, await response.text()
        content = await response.read()
    events = []
    for number, sent in enumerate(content.removesuffix(b"\n\n").split(b"\n\n")):
        name, data = sent.split(b"\n")
        event = msgspec.json.decode(data.removeprefix(b"data: "), type=ANY_EVENT)
        assert msgspec.json.encode(event) == data.removeprefix(b"data: ")
        assert name == b"event: " + event.__struct_config__.tag.encode()
        assert event.sequence_number == number
        events.append(event)
    return events


def kinds(events: list) -> list[str]:
    """Return the names of the events between the first two and the last."""
    return [each.__struct_config__.tag.removeprefix("response.") for each in events[2:-1]]


MESSAGE = ["output_item.added", "content_part.added", "output_text.delta"]
MESSAGE_END = ["output_text.done", "content_part.done", "output_item.done"]
CALL = ["output_item.added", "function_call_arguments.delta"]
CALL_END = ["function_call_arguments.done", "output_item.done"]


async def test_items_come_one_after_the_other(make_server):
    deltas = [
        ParsedDelta(reasoning="Hm"),
        ParsedDelta(content="a"),
        ParsedDelta(content="b"),
        call(0, name="f", arguments="{"),
        call(0, arguments="}"),
        call(1, name="f", arguments="{}"),
        None,
    ]
    events = await events_of(make_server, deltas)
    thought = ["output_item.added", "content_part.added", "reasoning_text.delta"]
    thought_end = ["reasoning_text.done", "content_part.done", "output_item.done"]
    message = [*MESSAGE, "output_text.delta", *MESSAGE_END]
    calls = [*CALL, "function_call_arguments.delta", *CALL_END, *CALL, *CALL_END]
    assert kinds(events) == [*thought, *thought_end, *message, *calls]
    indices = [each.output_index for each in events[2:-1]]
    assert indices == sorted(indices)


async def test_logprobs_are_streamed_as_they_are_described(make_server):
    fields = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    events = await events_of(make_server, [ParsedDelta(content="a"), ParsedDelta(content="b")], **fields)
    deltas = [each for each in events if isinstance(each, event_replies.OutputTextDelta)]
    assert [len(each.logprobs[0].top_logprobs) for each in deltas] == [2, 2]
    hidden = await events_of(make_server, [ParsedDelta(content="a"), None], include_reasoning=False, **fields)
    assert [each.logprobs for each in hidden if isinstance(each, event_replies.OutputTextDelta)] == [[]]
    assert hidden[-1].response.output[0].content[0].logprobs is None


async def test_text_within_a_call_waits_for_its_end(make_server):
    deltas = [call(0, name="f", arguments="{"), ParsedDelta(content="text"), call(0, arguments="}"), None]
    events = await events_of(make_server, deltas, "length")
    assert kinds(events) == [*CALL, "function_call_arguments.delta", *CALL_END, *MESSAGE, *MESSAGE_END]
    first, second = events[-1].response.output
    assert (first.arguments, first.status) == ("{}", "completed")
    assert (second.content[0].text, second.status) == ("text", "incomplete")


async def test_a_call_that_ran_out_of_tokens_is_incomplete(make_server):
    events = await events_of(make_server, [call(0, name="f", arguments='{"a'), None], "length")
    assert isinstance(events[-1], event_replies.ResponseIncomplete)
    (item,) = events[-1].response.output
    assert (item.arguments, item.status) == ('{"a', "incomplete")


async def test_nothing_at_all_is_a_response_without_items(make_server):
    events = await events_of(make_server, [None])
    assert kinds(events) == []
    assert events[-1].response.output == []


@pytest.mark.real
@pytest.mark.vllm
@pytest.mark.timeout(120)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's, while vLLM is imported
async def test_events_have_the_order_that_vllms_processor_gives(make_server):
    from vllm.entrypoints.generate.base.protocol import DeltaFunctionCall, DeltaMessage, DeltaToolCall
    from vllm.entrypoints.openai.responses.streaming_events import SimpleStreamingEventProcessor, split_delta

    deltas = [
        ParsedDelta(reasoning="Hm"),
        ParsedDelta(reasoning=".", content="a"),
        ParsedDelta(content="b"),
        call(0, name="f", arguments="{"),
        call(0, arguments="}"),
        call(1, name="f"),
        call(1, arguments="{}"),
    ]
    processor, theirs = SimpleStreamingEventProcessor(), []
    for each in deltas:
        pieces = [
            DeltaToolCall(
                index=piece.index, id=piece.id, function=DeltaFunctionCall(name=piece.name, arguments=piece.arguments)
            )
            for piece in each.tool_calls
        ]
        whole = DeltaMessage(content=each.content, reasoning=each.reasoning, tool_calls=pieces)
        for delta in split_delta(whole):
            target, tool_call = processor.resolve_target_state(delta)
            if processor.needs_transition(target, tool_call):
                theirs += processor.close_current() + processor.open(target, tool_call)
            theirs += processor.emit_delta(delta, output=None)
    theirs += processor.close_current()
    ours = await events_of(make_server, deltas)
    assert kinds(ours) == [each.type.removeprefix("response.") for each in theirs]
    for mine, its in zip(ours[2:-1], theirs, strict=True):
        named = {*msgspec.to_builtins(mine)} - {"name"}
        assert named <= {*its.model_dump()}
        assert {*its.model_dump(exclude_none=True)} - named <= {"name"}
