"""What chat and completion have in common: how tokens are sampled, when generation ends, what comes back."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from hpcserve.frontend.schemas.body import (
    INT32_MAX,
    INT64_MAX,
    MAX_CHOICES,
    Body,
    NonEmptyText,
    SessionId,
    TokenId,
    one_or_more,
)
from hpcserve.frontend.schemas.structure import ResponseFormat, StructuredOutputs


class StreamOptions(Body):
    """What a stream carries besides the deltas."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False
    continuous_usage_stats: bool = False


class GenerationBody(Body):
    """What chat and completion have in common. None: the model's default, else OpenAI's."""

    model: NonEmptyText
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    stop: Annotated[
        list[NonEmptyText], BeforeValidator(one_or_more, json_schema_input_type=NonEmptyText | list[NonEmptyText])
    ] = Field(default_factory=list)
    seed: int | None = Field(None, ge=-INT64_MAX, le=INT64_MAX - MAX_CHOICES)  # every choice adds its index
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = Field(default_factory=dict)
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    prompt_cache_key: SessionId | None = None

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None

    top_k: int | None = Field(None, ge=-1, le=INT32_MAX)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    min_tokens: int = Field(0, ge=0)
    ignore_eos: bool = False
    stop_token_ids: list[TokenId] = Field(default_factory=list)
    allowed_token_ids: Annotated[list[TokenId], Field(min_length=1)] | None = None
    bad_words: list[NonEmptyText] = Field(default_factory=list)
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    truncate_prompt_tokens: int | None = Field(None, ge=-1, le=INT64_MAX)  # -1: to what fits
    truncation_side: Literal["left", "right"] | None = None  # what is cut off; None: left, but for special tokens
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False  # in logprobs, "token_id:7" instead of the token
    priority: int | None = Field(None, ge=-INT32_MAX, le=INT32_MAX)
    cache_salt: NonEmptyText | None = None
