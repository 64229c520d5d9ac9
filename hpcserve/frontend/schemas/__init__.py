"""The request bodies that people write: OpenAI's fields, plus vLLM's extras. Everything that is not here is refused.

Nothing is coerced: "5" is not a number. `null` means "not given", as OpenAI's clients send it.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

_INT32_MAX = 2**31 - 1
_INT64_MAX = 2**63 - 1
_SESSION_ID = re.compile(r"[\x20-\x7e]{1,256}")
MAX_CHOICES = 128
MAX_LOGPROBS = 20


def drop_nulls(value: Any) -> Any:
    """Return an object without the fields that are null."""
    return {key: each for key, each in value.items() if each is not None} if isinstance(value, dict) else value


def _one_or_more(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _not_empty(value: str) -> str:
    if not value:
        raise ValueError("must not be empty")
    return value


def session_id(value: str) -> str:
    """Return `value` if it can name a session; raises `ValueError`."""
    if not _SESSION_ID.fullmatch(value):
        raise ValueError("must be 1 to 256 printable ASCII characters")
    return value


def _join_parts(content: Any) -> Any:
    """Flatten content parts to one string, as vLLM does for templates that expect strings."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ValueError("must be a string or a list of text parts")
    return "\n".join(_text_of(part) for part in content)


def _text_of(part: Any) -> str:
    if not isinstance(part, dict) or "type" not in part:
        raise ValueError('has a part that is not an object such as {"type": "text", "text": "…"}')
    if part["type"] != "text":
        raise ValueError(f"has a part of type {str(part['type'])[:40]!r}; only text is supported")
    if not isinstance(part.get("text"), str):
        raise ValueError("has a text part without a string in 'text'")
    return str(part["text"])


def _supported_role(role: Any) -> Any:
    if role in ("tool", "function"):
        raise ValueError(f"{role!r} is not supported: tool calls are not served here")
    return role


def _prompts(value: Any) -> list[str] | list[list[int]]:
    """Return a completion's prompt, in whichever of its four forms, as a list of prompts of one kind."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(isinstance(each, str) for each in value):
            return value
        if _are_token_ids(value):
            return [value]
        if all(isinstance(each, list) and _are_token_ids(each) for each in value):
            return value
    raise ValueError("must be a string, a list of strings, a list of token ids, or a list of lists of token ids")


def _are_token_ids(value: list[Any]) -> bool:
    return bool(value) and all(type(each) is int and 0 <= each <= _INT32_MAX for each in value)


class Body(BaseModel):
    """A JSON object of a request."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


NonEmptyText = Annotated[str, AfterValidator(_not_empty), WithJsonSchema({"type": "string", "minLength": 1})]
SessionId = Annotated[
    str, AfterValidator(session_id), WithJsonSchema({"type": "string", "pattern": f"^{_SESSION_ID.pattern}$"})
]
TokenId = Annotated[int, Field(ge=0, le=_INT32_MAX)]
# What `_one_or_more` and `_prompts` take, for the description of the API.
_OneOrMore = NonEmptyText | list[NonEmptyText]
_TokenIds = Annotated[list[TokenId], Field(min_length=1)]
_AnyPrompt = (
    str | Annotated[list[str], Field(min_length=1)] | _TokenIds | Annotated[list[_TokenIds], Field(min_length=1)]
)


class StreamOptions(Body):
    """What a stream carries besides the deltas."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False
    continuous_usage_stats: Literal[False] = False


class GenerationBody(Body):
    """What chat and completion have in common. None: the model's default, else OpenAI's."""

    model: NonEmptyText
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    stop: Annotated[
        list[NonEmptyText], BeforeValidator(_one_or_more, json_schema_input_type=NonEmptyText | list[NonEmptyText])
    ] = Field(default_factory=list)
    seed: int | None = Field(None, ge=-_INT64_MAX, le=_INT64_MAX - MAX_CHOICES)  # every choice adds its index
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = Field(default_factory=dict)
    stream: bool = False
    stream_options: Annotated[StreamOptions | None, BeforeValidator(drop_nulls)] = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    prompt_cache_key: SessionId | None = None

    top_k: int | None = Field(None, ge=-1, le=_INT32_MAX)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    min_tokens: int = Field(0, ge=0)
    ignore_eos: bool = False
    stop_token_ids: list[TokenId] = Field(default_factory=list)
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    priority: int | None = Field(None, ge=-_INT32_MAX, le=_INT32_MAX)
    cache_salt: NonEmptyText | None = None


class TextPart(BaseModel):
    """A part of a message's content. Other fields of it are ignored."""

    type: Literal["text"]
    text: str


class ChatMessage(Body):
    """What somebody said."""

    role: Annotated[Literal["system", "developer", "user", "assistant"], BeforeValidator(_supported_role)]
    content: Annotated[str, BeforeValidator(_join_parts, json_schema_input_type=str | list[TextPart])]
    name: str | None = None

    def for_template(self) -> dict[str, str]:
        """Return what a chat template sees."""
        named = {"name": self.name} if self.name is not None else {}
        return {"role": self.role, "content": self.content, **named}


Message = Annotated[ChatMessage, BeforeValidator(drop_nulls)]


class ChatBody(GenerationBody):
    """The body of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MAX_LOGPROBS)
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)


class CompletionBody(GenerationBody):
    """The body of /v1/completions."""

    prompt: Annotated[Any, BeforeValidator(_prompts, json_schema_input_type=_AnyPrompt)]
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    echo: bool = False


class TokenizeBody(Body):
    """What the two forms of /tokenize have in common."""

    model: NonEmptyText | None = None
    return_token_strs: bool = False


class TokenizeTextBody(TokenizeBody):
    """The body of /tokenize for a plain prompt."""

    prompt: str
    add_special_tokens: bool = True


class TokenizeChatBody(TokenizeBody):
    """The body of /tokenize for a conversation."""

    messages: list[Message] = Field(min_length=1)
    add_generation_prompt: bool = True
    add_special_tokens: bool = False
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)


class DetokenizeBody(Body):
    """The body of /detokenize."""

    model: NonEmptyText | None = None
    tokens: list[TokenId]
