"""What /v1/messages and /v1/messages/count_tokens answer with; the description of the API is made from these."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from hpcserve.frontend.replies import CompletionTokensDetails, PromptTokensDetails, Reply, Usage

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class TextContent(Reply, frozen=True, tag_field="type", tag="text"):
    """Text of the answer."""

    text: str


class ThinkingContent(Reply, frozen=True, tag_field="type", tag="thinking"):
    """Reasoning that precedes the answer. The signature proves nothing; clients send it back."""

    thinking: str
    signature: str


class ToolUseContent(Reply, frozen=True, tag_field="type", tag="tool_use"):
    """A tool that the client is asked to run."""

    id: str
    name: str
    input: dict[str, Any]


Content = TextContent | ThinkingContent | ToolUseContent


class ThinkingTokens(Reply, frozen=True):
    """Of the generated tokens."""

    thinking_tokens: int


class MessageUsage(Reply, frozen=True):
    """Tokens of one request. What was found in a cache is not in `input_tokens`; nothing is charged for caching."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: ThinkingTokens | UnsetType = UNSET  # where the model reasons


class Message(Reply, frozen=True, tag_field="type", tag="message"):
    """The answer, or what is known of it when its stream begins."""

    id: str
    role: Literal["assistant"]
    content: list[Content]
    model: str
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage


class TokenCount(Reply, frozen=True):
    """How long the prompt would be."""

    input_tokens: int


class MessageErrorDetail(Reply, frozen=True):
    """What went wrong, and what to change."""

    type: str
    message: str


class MessageError(Reply, frozen=True, tag_field="type", tag="error"):
    """The body of every error, and the last event of a stream that failed."""

    error: MessageErrorDetail
    request_id: str | None


class MessageStart(Reply, frozen=True, tag_field="type", tag="message_start"):
    """The first event."""

    message: Message


class BlockStart(Reply, frozen=True, tag_field="type", tag="content_block_start"):
    """A block begins, without its content."""

    index: int
    content_block: Content


class TextDelta(Reply, frozen=True, tag_field="type", tag="text_delta"):
    """More text."""

    text: str


class ThinkingDelta(Reply, frozen=True, tag_field="type", tag="thinking_delta"):
    """More reasoning."""

    thinking: str


class SignatureDelta(Reply, frozen=True, tag_field="type", tag="signature_delta"):
    """The signature, at the end of a block of reasoning."""

    signature: str


class InputDelta(Reply, frozen=True, tag_field="type", tag="input_json_delta"):
    """More of the JSON text of a tool's input."""

    partial_json: str


Delta = TextDelta | ThinkingDelta | SignatureDelta | InputDelta


class BlockDelta(Reply, frozen=True, tag_field="type", tag="content_block_delta"):
    """More of a block."""

    index: int
    delta: Delta


class BlockStop(Reply, frozen=True, tag_field="type", tag="content_block_stop"):
    """A block is complete."""

    index: int


class Ending(Reply, frozen=True):
    """Why the message ends."""

    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(Reply, frozen=True, tag_field="type", tag="message_delta"):
    """What is known at the end only."""

    delta: Ending
    usage: MessageUsage


class MessageStop(Reply, frozen=True, tag_field="type", tag="message_stop"):
    """The last event."""


EVENTS = (MessageStart, BlockStart, BlockDelta, BlockStop, MessageDelta, MessageStop, MessageError)


def usage_of(num_prompt: int, num_cached: int, num_generated: int) -> MessageUsage:
    """Return the usage of a message; `num_prompt` includes `num_cached`."""
    return MessageUsage(
        input_tokens=num_prompt - num_cached,
        cache_creation_input_tokens=0,
        cache_read_input_tokens=num_cached,
        output_tokens=num_generated,
    )


def final_usage(usage: Usage) -> MessageUsage:
    """Return the usage of a message that is complete."""
    prompt, completion = usage.prompt_tokens_details, usage.completion_tokens_details
    num_cached = prompt.cached_tokens if isinstance(prompt, PromptTokensDetails) else 0
    told = usage_of(usage.prompt_tokens, num_cached, usage.completion_tokens)
    if not isinstance(completion, CompletionTokensDetails):
        return told
    return msgspec.structs.replace(told, output_tokens_details=ThinkingTokens(completion.reasoning_tokens))


def message_id(request_id: str) -> str:
    """Return the id of the message that answers the job of this id."""
    return "msg_" + request_id.rpartition("-")[2]
