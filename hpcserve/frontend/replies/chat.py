"""The answer to a chat completion, in one piece and streamed."""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, UnsetType

from hpcserve.frontend.replies.body import Reply, Usage
from hpcserve.types import FinishReason

ChatFinishReason = FinishReason | Literal["tool_calls"]


class AlternativeToken(Reply, frozen=True):
    """A token that could have been chosen."""

    token: str
    logprob: float
    bytes: list[int]


class ChosenToken(AlternativeToken, frozen=True):
    """A token that was generated."""

    top_logprobs: list[AlternativeToken]


class ChatLogprobs(Reply, frozen=True):
    """Log probabilities of a chat choice."""

    content: list[ChosenToken]


class CalledFunction(Reply, frozen=True):
    """The function that the model asks for; the arguments are JSON text, as good as the model wrote it."""

    name: str
    arguments: str


class ToolCallReply(Reply, frozen=True):
    """A call that the model asks for."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class ChatReplyMessage(Reply, frozen=True):
    """What the model said."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    annotations: None
    audio: None
    function_call: None
    tool_calls: list[ToolCallReply] | UnsetType = UNSET  # where there are any
    reasoning: str | None = None
    reasoning_content: str | UnsetType = UNSET  # the same, for older clients


class ChatChoice(Reply, frozen=True):
    """One of the answers to a conversation."""

    index: int
    message: ChatReplyMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason | None
    stop_reason: int | str | None
    token_ids: list[int] | None
    routed_experts: None = None


class ChatCompletion(Reply, frozen=True):
    """The answer to a chat completion in one piece."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    service_tier: None
    system_fingerprint: str
    usage: Usage
    prompt_logprobs: None
    prompt_token_ids: list[int] | None
    prompt_text: None
    kv_transfer_params: None = None
    ec_transfer_params: None = None
    metrics: None = None


class FunctionDelta(Reply, frozen=True, kw_only=True):
    """What is added to a function call: its name at once, its arguments in pieces."""

    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class ToolCallReplyDelta(Reply, frozen=True, kw_only=True):
    """What is added to a call; its id comes with its first piece."""

    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    index: int
    function: FunctionDelta


class ChatDelta(Reply, frozen=True, kw_only=True):
    """What is added to the message."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallReplyDelta] | UnsetType = UNSET


class ChatChunkChoice(Reply, frozen=True):
    """What is added to one answer."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason | None
    stop_reason: int | str | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType | None = UNSET


class ChatCompletionChunk(Reply, frozen=True):
    """One event of a streamed chat completion. The last one, where it was asked for, has the usage and no choices."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType = UNSET
    system_fingerprint: str | UnsetType = UNSET  # in the last one
    prompt_token_ids: list[int] | UnsetType | None = UNSET
    prompt_text: UnsetType | None = UNSET
