"""The events of one streamed message: a start, blocks one after the other, and an end.

What engines emit is a flow of text, reasoning and pieces of tool calls; here it becomes blocks that open and close.
"""

from __future__ import annotations

import secrets
from typing import Any

import msgspec

from hpcserve.errors import HpcserveError
from hpcserve.frontend.generation import Job
from hpcserve.frontend.messages.errors import message_error_body
from hpcserve.frontend.messages.replies import (
    BlockDelta,
    BlockStart,
    BlockStop,
    Content,
    Delta,
    InputDelta,
    Message,
    MessageDelta,
    MessageStart,
    MessageStop,
    SignatureDelta,
    TextContent,
    ThinkingContent,
    ThinkingDelta,
    ToolUseContent,
    final_usage,
    message_id,
    usage_of,
)
from hpcserve.frontend.messages.stopping import ending_of, is_object
from hpcserve.frontend.replies import Usage
from hpcserve.types import ChatParsing, EngineOutput, ParsedDelta, ToolCallDelta

_encode = msgspec.json.Encoder().encode


class MessageEvents:
    """A `ChunkFormat`. Text during a tool call waits for the call's end, as blocks do not overlap."""

    def __init__(self, job: Job, http_request_id: str) -> None:
        self._job = job
        self._http_request_id = http_request_id  # for what fails
        self._parsing = job.requests[0].parsing
        self._has_started = False
        self._index = -1  # of the block that is open, or was the last
        self._open: type[Content] | None = None
        self._text_head = b""  # what precedes the text of a delta of the open block
        self._call: int | None = None  # the tool call of the open block
        self._arguments: list[str] = []  # of the last tool call
        self._waiting_text: list[str] = []
        self._last: EngineOutput | None = None

    def preamble(self) -> bytes:
        """Return nothing: the start of a message tells how much of the prompt was cached, which is not known yet."""
        return b""

    def text_chunk(self, index: int) -> None:
        """Return None: a delta may open a block."""

    def chunk(self, index: int, output: EngineOutput) -> bytes:
        """Return the events of a delta; nothing where there is nothing to show yet."""
        events = b"" if self._has_started else self._start(output)
        if self._parsing is None:
            events += self._text(output.text)
        elif output.parsed is not None:
            events += self._parsed(output.parsed, self._parsing)
        if output.finish_reason is not None:
            self._last = output
        return events

    def ending(self, usage: Usage) -> bytes:
        """Return the end of the open block, why the message ended, the usage, and the last event."""
        events = self._close()
        if self._index < 0:  # clients expect a block
            events += self._begin(TextContent("")) + self._close()
        last = self._last
        ending = ending_of(
            last.finish_reason if last else None,
            last.stop_reason if last else None,
            calls_tools=self._call is not None,
            calls_are_whole=is_object("".join(self._arguments) or "{}"),
        )
        events += _event("message_delta", MessageDelta(ending, final_usage(usage)))
        return events + _event("message_stop", MessageStop())

    def failure(self, error: HpcserveError) -> bytes:
        """Return the event for an error."""
        return b"event: error\ndata: " + message_error_body(error, self._http_request_id) + b"\n\n"

    def _start(self, output: EngineOutput) -> bytes:
        self._has_started = True
        usage = usage_of(self._job.num_prompt_tokens, output.cached_tokens or 0, len(output.token_ids))
        message = Message(
            id=message_id(self._job.request_id),
            role="assistant",
            content=[],
            model=self._job.model,
            stop_reason=None,
            stop_sequence=None,
            usage=usage,
        )
        return _event("message_start", MessageStart(message))

    def _parsed(self, parsed: ParsedDelta, parsing: ChatParsing) -> bytes:
        events = self._thinking(parsed.reasoning) if parsed.reasoning and parsing.include_reasoning else b""
        if parsed.content:
            events += self._text(parsed.content)
        for call in parsed.tool_calls:
            if parsing.parallel_tool_calls or call.index == 0:
                events += self._tool_call(call)
        return events

    def _text(self, text: str) -> bytes:
        if not text:
            return b""
        if self._open is ToolUseContent:
            self._waiting_text.append(text)
            return b""
        begun = b"" if self._open is TextContent else self._begin(TextContent(""))
        return b"%b%b%b}}\n\n" % (begun, self._text_head, _encode(text))

    def _thinking(self, text: str) -> bytes:
        begun = b"" if self._open is ThinkingContent else self._begin(ThinkingContent("", ""))
        return begun + self._delta(ThinkingDelta(text))

    def _tool_call(self, call: ToolCallDelta) -> bytes:
        events = b""
        if call.name is not None and call.index != self._call:
            events = self._begin(ToolUseContent(call.id or f"toolu_{secrets.token_hex(12)}", call.name, {}))
            self._call = call.index
            self._arguments = []
        if call.arguments and call.index == self._call and self._open is ToolUseContent:
            self._arguments.append(call.arguments)
            events += self._delta(InputDelta(call.arguments))
        return events

    def _begin(self, block: Content) -> bytes:
        events = self._close()
        self._index += 1
        self._open = type(block)
        self._text_head = (
            b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,'
            b'"delta":{"type":"text_delta","text":' % self._index
        )
        return events + _event("content_block_start", BlockStart(self._index, block))

    def _close(self) -> bytes:
        events = b""
        if self._open is ThinkingContent:
            events += self._delta(SignatureDelta(secrets.token_hex(16)))
        if self._open is not None:
            events += _event("content_block_stop", BlockStop(self._index))
            self._open = None
        if self._waiting_text:
            text, self._waiting_text = "".join(self._waiting_text), []
            events += self._text(text) + self._close()
        return events

    def _delta(self, delta: Delta) -> bytes:
        return _event("content_block_delta", BlockDelta(self._index, delta))


def _event(name: str, value: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), _encode(value))
