"""The message in one piece."""

from __future__ import annotations

import secrets
from typing import Any

import pydantic_core

from hpcserve.errors import EngineError
from hpcserve.frontend.collecting import Collected
from hpcserve.frontend.generation import Job
from hpcserve.frontend.messages.replies import (
    Content,
    Message,
    TextContent,
    ThinkingContent,
    ToolUseContent,
    final_usage,
    message_id,
)
from hpcserve.frontend.messages.stopping import ending_of
from hpcserve.frontend.replies import Usage
from hpcserve.types import ParsedDelta, ToolCallDelta


def message_of(job: Job, collected: Collected, usage: Usage) -> Message:
    """Return the message. Raises `EngineError` for a tool call whose arguments are no JSON object."""
    parsing = job.requests[0].parsing
    parsed = collected.parsed or ParsedDelta(content=collected.text)
    is_cut = collected.finish_reason == "length"
    calls = parsed.tool_calls[: None if parsing is None or parsing.parallel_tool_calls else 1]
    content: list[Content] = []
    if parsed.reasoning and (parsing is None or parsing.include_reasoning):
        content.append(ThinkingContent(parsed.reasoning, secrets.token_hex(16)))
    if parsed.content:
        content.append(TextContent(parsed.content))
    content += [_tool_use(each, is_cut) for each in calls]
    ending = ending_of(
        collected.finish_reason, collected.stop_reason, calls_tools=bool(calls), calls_are_whole=bool(calls)
    )
    return Message(
        id=message_id(job.request_id),
        role="assistant",
        content=content or [TextContent("")],  # clients expect a block
        model=job.model,
        stop_reason=ending.stop_reason,
        stop_sequence=ending.stop_sequence,
        usage=final_usage(usage),
    )


def _tool_use(call: ToolCallDelta, is_cut: bool) -> ToolUseContent:
    name = call.name or ""
    return ToolUseContent(call.id or f"toolu_{secrets.token_hex(12)}", name, _input(name, call.arguments or "", is_cut))


def _input(name: str, arguments: str, is_cut: bool) -> dict[str, Any]:
    try:
        value = pydantic_core.from_json(arguments or "{}", allow_partial=is_cut)
    except ValueError as err:
        raise EngineError(f"the model called {name!r} with arguments that are not JSON: {err}") from err
    if not isinstance(value, dict):
        raise EngineError(f"the model called {name!r} with arguments that are no JSON object")
    return value
