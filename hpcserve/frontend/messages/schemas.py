"""The bodies of /v1/messages and /v1/messages/count_tokens: Anthropic's fields, and a few of vLLM's extras."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from hpcserve.frontend.messages.blocks import Hint, InputMessage, TextBlocks
from hpcserve.frontend.schemas import Body, NonEmptyText
from hpcserve.frontend.schemas.body import INT32_MAX

_MIN_THINKING_TOKENS = 1024

# Fields that are known but not served, each with the values that ask for nothing; `...` is any value.
_CONVERSATION: dict[str, tuple[Any, ...]] = {
    "cache_control": (...,),
    "speed": ("standard",),
    "context_management": ({"edits": []}, {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}),
    "mcp_servers": ([],),
}
COUNT_TOKENS = _CONVERSATION
MESSAGES: dict[str, tuple[Any, ...]] = _CONVERSATION | {
    "service_tier": ("auto", "standard_only"),
    "container": (),
    "inference_geo": (),
    "diagnostics": (),
    "kv_transfer_params": (),
    "ec_transfer_params": (),
    "vllm_xargs": (),
    "watermarking": (False,),
}


class ClientTool(Body):
    """A tool that the client runs. Anthropic's own tools, which name another type, are refused."""

    type: Literal["custom"] = "custom"
    name: NonEmptyText
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None
    cache_control: Hint = None
    defer_loading: Literal[False] = False
    eager_input_streaming: bool = False  # inputs are streamed as they are generated anyway
    allowed_callers: list[Literal["direct"]] = Field(default_factory=list)
    input_examples: Annotated[list[Any], Field(max_length=0)] = Field(default_factory=list)


class ToolUseChoice(Body):
    """Which tools the model may or must use."""

    type: Literal["auto", "any", "tool", "none"]
    name: NonEmptyText | None = None
    disable_parallel_tool_use: bool = False

    @model_validator(mode="after")
    def _names_a_tool_or_none(self) -> Self:
        if (self.type == "tool") != (self.name is not None):
            raise ValueError(f"of type {self.type!r} {'takes no' if self.name else 'needs a'} name")
        return self


class Thinking(Body):
    """Whether the model reasons before it answers.

    `budget_tokens` is checked, but holds nobody back: what ends reasoning is the model, or max_tokens.
    """

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = Field(None, ge=_MIN_THINKING_TOKENS)
    display: Literal["summarized", "omitted"] = "summarized"

    @model_validator(mode="after")
    def _has_a_budget_or_none(self) -> Self:
        if (self.type == "enabled") != (self.budget_tokens is not None):
            verb = "needs" if self.budget_tokens is None else "takes no"
            raise ValueError(f"of type {self.type!r} {verb} budget_tokens")
        return self


class OutputFormat(Body):
    """A JSON Schema that the answer follows."""

    model_config = ConfigDict(populate_by_name=True)

    type: Literal["json_schema"]
    json_schema: dict[str, Any] = Field(alias="schema")  # "schema" is a method of pydantic's models


class OutputConfig(Body):
    """How the answer looks, and how much the model thinks about it."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class MessageMetadata(Body):
    """Of the request."""

    user_id: str | None = None


class ConversationBody(Body):
    """What both bodies have in common: all that goes into the prompt."""

    model: NonEmptyText
    messages: list[InputMessage] = Field(min_length=1)
    system: TextBlocks = Field(default_factory=list)
    tools: list[ClientTool] = Field(default_factory=list)
    tool_choice: ToolUseChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)


class CountTokensBody(ConversationBody):
    """The body of /v1/messages/count_tokens."""


class MessagesBody(ConversationBody):
    """The body of /v1/messages."""

    max_tokens: int = Field(ge=1)
    metadata: MessageMetadata | None = None
    stop_sequences: list[NonEmptyText] = Field(default_factory=list)
    stream: bool = False
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=INT32_MAX)
    priority: int | None = Field(None, ge=-INT32_MAX, le=INT32_MAX)
    cache_salt: NonEmptyText | None = None
