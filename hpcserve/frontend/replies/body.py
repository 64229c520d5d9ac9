"""What replies have in common: the JSON object, the error, the usage."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from hpcserve import __version__

SYSTEM_FINGERPRINT = f"hpcserve-{__version__}"


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


class CompletionTokensDetails(Reply, frozen=True):
    """Of the generated tokens."""

    reasoning_tokens: int


class Usage(Reply, frozen=True):
    """Tokens of one request, all its choices together."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int
    prompt_tokens_details: PromptTokensDetails | UnsetType = UNSET  # not in the usage so far
    completion_tokens_details: CompletionTokensDetails | UnsetType | None = UNSET  # where the model reasons


def whole_usage(usage: Usage) -> Usage:
    """Return the usage for an answer in one piece, where vLLM sends what is not known as null."""
    known = None if usage.completion_tokens_details is UNSET else usage.completion_tokens_details
    return msgspec.structs.replace(usage, completion_tokens_details=known)
