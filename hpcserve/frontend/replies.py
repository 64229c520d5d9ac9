"""The bodies that the frontend answers with, in vLLM's order of fields; the description of the API is made from these.

Chunks of streams are written by hand, because they are made for every token; a test holds them against what is here.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from hpcserve.types import FinishReason


class Reply(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A JSON object of a response. Every field is sent, but those that are `UNSET`."""


class ErrorDetail(Reply, frozen=True):
    """What went wrong, and what to change."""

    message: str
    type: str
    param: str | None  # the field of the request that was wrong
    code: str | None


class ErrorReply(Reply, frozen=True):
    """The body of every error."""

    error: ErrorDetail


class PromptTokensDetails(Reply, frozen=True):
    """Of the prompt's tokens."""

    cached_tokens: int


class Usage(Reply, frozen=True):
    """Tokens of one request, all its choices together."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int
    prompt_tokens_details: PromptTokensDetails


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


class CompletionLogprobs(Reply, frozen=True):
    """Log probabilities of a completion choice: lists with one item a token."""

    text_offset: list[int]
    token_logprobs: list[float]
    tokens: list[str]
    top_logprobs: list[dict[str, float]]


class ChatReplyMessage(Reply, frozen=True):
    """What the model said."""

    role: Literal["assistant"]
    content: str
    refusal: None
    annotations: None
    audio: None
    function_call: None
    reasoning: None


class ChatChoice(Reply, frozen=True):
    """One of the answers to a conversation."""

    index: int
    message: ChatReplyMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: int | str | None
    token_ids: None


class ChatCompletion(Reply, frozen=True):
    """The answer to a chat completion in one piece."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    service_tier: None
    system_fingerprint: None
    usage: Usage
    prompt_logprobs: None
    prompt_token_ids: None
    prompt_text: None
    kv_transfer_params: None


class ChatDelta(Reply, frozen=True, kw_only=True):
    """What is added to the message."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str


class ChatChunkChoice(Reply, frozen=True):
    """What is added to one answer."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: int | str | UnsetType | None = UNSET
    token_ids: UnsetType | None = UNSET


class ChatCompletionChunk(Reply, frozen=True):
    """One event of a streamed chat completion. The last one, where it was asked for, has the usage and no choices."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType = UNSET
    prompt_token_ids: UnsetType | None = UNSET
    prompt_text: UnsetType | None = UNSET


class CompletionChoice(Reply, frozen=True):
    """One continuation of one prompt."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: int | str | None
    token_ids: None
    prompt_logprobs: None
    prompt_token_ids: None


class Completion(Reply, frozen=True):
    """The answer to a completion in one piece."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    service_tier: None
    system_fingerprint: None
    usage: Usage
    kv_transfer_params: None


class CompletionChunkChoice(Reply, frozen=True):
    """What is added to one continuation."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: int | str | None
    prompt_token_ids: None
    token_ids: None


class CompletionChunk(Reply, frozen=True):
    """One event of a streamed completion. The last one, where it was asked for, has the usage and no choices."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChunkChoice]
    usage: Usage | UnsetType = UNSET


class Model(Reply, frozen=True):
    """OpenAI's Model object, with vLLM's extras."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: None
    max_model_len: int


class ModelList(Reply, frozen=True):
    """The served models: one, or none until it is served."""

    object: Literal["list"]
    data: list[Model]


class Tokenized(Reply, frozen=True):
    """Token ids of a prompt or a conversation."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(Reply, frozen=True):
    """The text of token ids."""

    prompt: str


class Healthy(Reply, frozen=True):
    """Requests are served."""

    status: Literal["ok"]
    phase: str


class Alive(Reply, frozen=True):
    """The process answers."""

    status: Literal["ok"]
