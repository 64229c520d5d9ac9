"""The events of a streamed chat completion, with the fields of vLLM's server in their order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from hpcserve.errors import HpcserveError
from hpcserve.frontend.chunk_envelope import ChunkEnvelope
from hpcserve.frontend.generation import Job
from hpcserve.frontend.logprobs import chat_logprobs
from hpcserve.frontend.replies import Usage
from hpcserve.frontend.schemas import ChatBody
from hpcserve.frontend.streaming import failure_event
from hpcserve.types import ChatParsing, EngineOutput, ParsedDelta, ToolCallDelta

_encode = msgspec.json.encode


@dataclass
class _Progress:
    """What one choice has said so far."""

    num_tokens: int = 0
    calls_tools: bool = False


class ChatChunks:
    """The events of one streamed chat completion."""

    def __init__(self, job: Job, body: ChatBody) -> None:
        self._job = job
        self._parsing = job.requests[0].parsing
        # Tokens of hidden reasoning would tell what it was.
        hides = self._parsing is not None and not body.include_reasoning
        self._num_top = body.top_logprobs if body.logprobs and not hides else None
        self._names_ids = body.return_tokens_as_token_ids
        self._gives_ids = body.return_token_ids and not hides
        self._prompt_ids = job.requests[0].token_ids if body.return_token_ids else None
        self._counts = body.stream_options is not None and body.stream_options.continuous_usage_stats
        self._progress = [_Progress() for _ in job.requests]
        self._envelope = ChunkEnvelope(job, "chat.completion.chunk")
        self._head = self._envelope.head

    def preamble(self) -> bytes:
        """Return the chunks that name the role, one a choice."""
        delta = b'"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]'
        tail = self._usage(0) + b',"prompt_token_ids":' + _encode(self._prompt_ids) + b',"prompt_text":null}\n\n'
        return b"".join(self._head + b'{"index":%d,' % index + delta + tail for index in range(len(self._job.requests)))

    def text_chunk(self, index: int) -> tuple[bytes, bytes] | None:
        """Return the parts around the text of a delta; None where the delta says more than text."""
        if self._parsing is not None or self._gives_ids or self._counts:
            return None
        head = self._head + b'{"index":%d,"delta":{"content":' % index
        return head, b'},"logprobs":null,"finish_reason":null,"token_ids":null}]}\n\n'

    def chunk(self, index: int, output: EngineOutput) -> bytes:
        """Return the event of a delta; nothing where its tokens are not a part of the message yet."""
        progress = self._progress[index]
        progress.num_tokens += len(output.token_ids)
        delta = self._delta(progress, output)
        logprobs = None if self._num_top is None else chat_logprobs(output.logprobs, self._num_top, self._names_ids)
        if delta is None:
            if output.finish_reason is None and logprobs is None and not self._gives_ids:
                return b""
            delta = {}
        choice: dict[str, Any] = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
        if output.finish_reason is not None:
            choice["finish_reason"] = self._finish_reason(progress, output.finish_reason)
            choice["stop_reason"] = output.stop_reason
        choice["token_ids"] = output.token_ids if self._gives_ids else None
        return self._envelope.around(choice, self._usage(progress.num_tokens), output.finish_reason)

    def ending(self, usage: Usage) -> bytes:
        """Return the event with the usage and no choices, where it was asked for, and the last one."""
        return self._envelope.ending(usage)

    def failure(self, error: HpcserveError) -> bytes:
        """Return OpenAI's event for an error."""
        return failure_event(error)

    def _delta(self, progress: _Progress, output: EngineOutput) -> dict[str, Any] | None:
        if self._parsing is None:
            return {"content": output.text}
        if output.parsed is None:
            return None
        if output.parsed.tool_calls:
            progress.calls_tools = True
        return _parsed_delta(output.parsed, self._parsing) or None

    def _finish_reason(self, progress: _Progress, reason: str) -> str:
        """Return the reason that a client is told; for a function that was named it stays "stop", as OpenAI has it."""
        is_named = self._parsing is not None and isinstance(self._parsing.tool_choice, dict)
        return "tool_calls" if progress.calls_tools and not is_named and reason == "stop" else reason

    def _usage(self, num_tokens: int) -> bytes:
        """Return the usage so far, where every chunk has it."""
        if not self._counts:
            return b""
        prompt = self._job.num_prompt_tokens
        return b',"usage":' + _encode(Usage(prompt, prompt + num_tokens, num_tokens, completion_tokens_details=None))


def _parsed_delta(parsed: ParsedDelta, parsing: ChatParsing) -> dict[str, Any]:
    delta: dict[str, Any] = {}
    if parsed.content is not None:
        delta["content"] = parsed.content
    if parsed.reasoning is not None:
        delta["reasoning"] = delta["reasoning_content"] = parsed.reasoning
    calls = [_call_delta(each) for each in parsed.tool_calls if parsing.parallel_tool_calls or each.index == 0]
    if calls:
        delta["tool_calls"] = calls
    return delta


def _call_delta(call: ToolCallDelta) -> dict[str, Any]:
    function = {name: each for name in ("name", "arguments") if (each := getattr(call, name)) is not None}
    first = {} if call.id is None else {"id": call.id, "type": "function"}
    return {**first, "index": call.index, "function": function}
