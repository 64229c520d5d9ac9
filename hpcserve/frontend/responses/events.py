"""The events of one streamed response: a start, items one after the other, and an end, in OpenAI's order.

What engines emit is a flow of text, reasoning and pieces of tool calls; here it becomes items that open and close.
"""

from __future__ import annotations

from itertools import count

from hpcserve.errors import BadRequest, HpcserveError, RateLimited
from hpcserve.frontend.generation import Job
from hpcserve.frontend.replies import ChosenToken, Usage
from hpcserve.frontend.responses import event_replies as events
from hpcserve.frontend.responses.answer import call_id, response_of, token_logprobs
from hpcserve.frontend.responses.open_items import OpenCall, OpenItem, OpenMessage, OpenReasoning, encoded
from hpcserve.frontend.responses.replies import ItemStatus, OutputItem, ResponseError
from hpcserve.frontend.responses.schemas import ResponsesBody
from hpcserve.types import EngineOutput, ParsedDelta, TokenLogprob, ToolCallDelta


class ResponseEvents:
    """A `ChunkFormat`. Text during a tool call waits for the call's end, as items do not overlap."""

    def __init__(self, job: Job, body: ResponsesBody) -> None:
        self._job = job
        self._body = body
        self._parsing = job.requests[0].parsing
        # Tokens of hidden reasoning would tell what it was.
        self._shows_logprobs = body.gives_logprobs and (self._parsing is None or body.include_reasoning)
        self._numbers = count()
        self._output: list[OutputItem] = []  # what is whole
        self._open: OpenItem | None = None
        self._call: int | None = None  # the tool call that is open, or was the last
        self._waiting: list[tuple[str, list[ChosenToken]]] = []
        self._is_cut = False

    def preamble(self) -> bytes:
        """Return the two events that say what was asked for."""
        response = response_of(self._job, self._body, "in_progress", [])
        created = events.ResponseCreated(sequence_number=next(self._numbers), response=response)
        begun = events.ResponseInProgress(sequence_number=next(self._numbers), response=response)
        return encoded(created) + encoded(begun)

    def text_chunk(self, index: int) -> None:
        """Return None: every event has a number of its own."""

    def chunk(self, index: int, output: EngineOutput) -> bytes:
        """Return the events of a delta; nothing where there is nothing to show yet."""
        if output.finish_reason is not None:
            self._is_cut = output.finish_reason == "length"
        if self._parsing is None:
            return self._text(output.text, self._logprobs(output.logprobs))
        return b"" if output.parsed is None else self._parsed(output.parsed, self._logprobs(output.logprobs))

    def ending(self, usage: Usage) -> bytes:
        """Return the end of the open item, and the whole response."""
        status: ItemStatus = "incomplete" if self._is_cut else "completed"
        closing = self._close(status)
        response = response_of(self._job, self._body, status, self._output, usage)
        last = events.ResponseIncomplete if self._is_cut else events.ResponseCompleted
        return closing + encoded(last(sequence_number=next(self._numbers), response=response))

    def failure(self, error: HpcserveError) -> bytes:
        """Return the event of a response that failed, with what there is of it."""
        output = self._output if self._open is None else [*self._output, self._open.item("incomplete")]
        why = ResponseError(_error_code(error), error.message)
        response = response_of(self._job, self._body, "failed", output, error=why)
        return encoded(events.ResponseFailed(sequence_number=next(self._numbers), response=response))

    def _parsed(self, parsed: ParsedDelta, logprobs: list[ChosenToken]) -> bytes:
        sent = self._reasoning(parsed.reasoning) if parsed.reasoning and self._body.include_reasoning else b""
        if parsed.content:
            sent += self._text(parsed.content, logprobs)
        for call in parsed.tool_calls:
            if self._body.parallel_tool_calls or call.index == 0:
                sent += self._tool_call(call)
        return sent

    def _text(self, text: str, logprobs: list[ChosenToken]) -> bytes:
        if not text:
            return b""
        item = self._open
        if isinstance(item, OpenMessage):
            return item.add(text, logprobs)
        if isinstance(item, OpenCall):
            self._waiting.append((text, logprobs))
            return b""
        closing = self._close("completed")
        message = OpenMessage(len(self._output), self._numbers)
        return closing + self._begin(message) + message.add(text, logprobs)

    def _reasoning(self, text: str) -> bytes:
        if isinstance(self._open, OpenReasoning):
            return self._open.add(text)
        closing = self._close("completed")
        reasoning = OpenReasoning(len(self._output), self._numbers)
        return closing + self._begin(reasoning) + reasoning.add(text)

    def _tool_call(self, call: ToolCallDelta) -> bytes:
        sent = b""
        if call.name is not None and call.index != self._call:
            sent = self._close("completed")
            sent += self._begin(OpenCall(len(self._output), self._numbers, call_id(call), call.name))
            self._call = call.index
        if call.arguments and call.index == self._call and isinstance(self._open, OpenCall):
            sent += self._open.add(call.arguments)
        return sent

    def _begin(self, item: OpenItem) -> bytes:
        self._open = item
        return item.begin()

    def _close(self, status: ItemStatus) -> bytes:
        """Return the end of the open item; `status` is that of the last item if one waits behind it."""
        item, self._open = self._open, None
        if item is None:
            return b""
        waiting, self._waiting = self._waiting, []
        own_status: ItemStatus = "completed" if waiting else status
        sent = item.end(own_status)
        self._output.append(item.item(own_status))
        for text, logprobs in waiting:
            sent += self._text(text, logprobs)
        return sent + self._close(status) if waiting else sent

    def _logprobs(self, tokens: tuple[TokenLogprob, ...]) -> list[ChosenToken]:
        return token_logprobs(self._body, tokens) if self._shows_logprobs else []


def _error_code(error: HpcserveError) -> str:
    """Return OpenAI's code for what ends a response."""
    if isinstance(error, RateLimited):
        return "rate_limit_exceeded"
    return "invalid_prompt" if isinstance(error, BadRequest) else "server_error"
