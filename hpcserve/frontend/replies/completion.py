"""The answer to a completion, in one piece and streamed."""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, UnsetType

from hpcserve.frontend.replies.body import Reply, Usage
from hpcserve.types import FinishReason


class CompletionLogprobs(Reply, frozen=True):
    """Log probabilities of a completion choice: lists with one item a token."""

    text_offset: list[int]
    token_logprobs: list[float]
    tokens: list[str]
    top_logprobs: list[dict[str, float]]


class CompletionChoice(Reply, frozen=True):
    """One continuation of one prompt."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: int | str | None
    token_ids: list[int] | None
    prompt_logprobs: None
    prompt_token_ids: list[int] | None
    routed_experts: None = None


class Completion(Reply, frozen=True):
    """The answer to a completion in one piece."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    service_tier: None
    system_fingerprint: str
    usage: Usage
    kv_transfer_params: None = None
    ec_transfer_params: None = None
    metrics: None = None


class CompletionChunkChoice(Reply, frozen=True):
    """What is added to one continuation."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: int | str | None
    prompt_token_ids: list[int] | None
    token_ids: list[int] | None


class CompletionChunk(Reply, frozen=True):
    """One event of a streamed completion. The last one, where it was asked for, has the usage and no choices."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChunkChoice]
    usage: Usage | UnsetType = UNSET
    system_fingerprint: str | UnsetType = UNSET  # in the last one
