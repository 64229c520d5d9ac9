"""What /v1/responses answers with; the description of the API is made from these. Events are in `event_replies`."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, UnsetType

from hpcserve.frontend.replies import ChosenToken, Reply

ItemStatus = Literal["in_progress", "completed", "incomplete"]
ResponseStatus = Literal["in_progress", "completed", "incomplete", "failed"]


class OutputText(Reply, frozen=True, tag_field="type", tag="output_text"):
    """Text of the answer."""

    annotations: list[Any]
    text: str
    logprobs: list[ChosenToken] | None


class OutputMessage(Reply, frozen=True, tag_field="type", tag="message"):
    """What the model said."""

    id: str
    content: list[OutputText]
    role: Literal["assistant"]
    status: ItemStatus


class ReasoningContent(Reply, frozen=True, tag_field="type", tag="reasoning_text"):
    """Text of what the model thought."""

    text: str


class OutputReasoning(Reply, frozen=True, tag_field="type", tag="reasoning"):
    """What the model thought before it answered, in full."""

    id: str
    summary: list[Any]
    content: list[ReasoningContent] | None
    encrypted_content: None
    status: ItemStatus


class OutputFunctionCall(Reply, frozen=True, tag_field="type", tag="function_call"):
    """A call that the model asks for; the arguments are JSON text, as good as the model wrote it."""

    arguments: str
    call_id: str
    name: str
    id: str
    status: ItemStatus


OutputItem = OutputMessage | OutputReasoning | OutputFunctionCall


class IncompleteDetails(Reply, frozen=True):
    """Why a response is not complete."""

    reason: Literal["max_output_tokens"]


class ResponseError(Reply, frozen=True):
    """Why a response failed."""

    code: str
    message: str


class EchoedTool(Reply, frozen=True):
    """A function that the request offered."""

    name: str
    parameters: dict[str, Any] | None
    strict: bool | None
    type: Literal["function"]
    description: str | None


class EchoedChoice(Reply, frozen=True):
    """The function that the request named."""

    name: str
    type: Literal["function"]


class EchoedFormat(Reply, frozen=True):
    """What the request wants the text to look like."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | UnsetType = UNSET
    description: str | UnsetType | None = UNSET
    schema: dict[str, Any] | UnsetType = UNSET
    strict: bool | UnsetType | None = UNSET


class EchoedText(Reply, frozen=True):
    """What the request says about the text."""

    format: EchoedFormat


class EchoedReasoning(Reply, frozen=True):
    """What the request says about reasoning. No summaries are made."""

    effort: str | None
    summary: None


class InputTokensDetails(Reply, frozen=True):
    """Of the prompt's tokens. Writing to the cache is not counted, as nothing is charged for it."""

    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(Reply, frozen=True):
    """Of the generated tokens."""

    reasoning_tokens: int


class ResponseUsage(Reply, frozen=True):
    """Tokens of one response."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class Response(Reply, frozen=True, kw_only=True):
    """The answer in one piece, or what is known of it when an event of its stream is sent."""

    id: str
    created_at: int
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    metadata: dict[str, Any] | None
    model: str
    object: Literal["response"] = "response"
    output: list[OutputItem]
    parallel_tool_calls: bool
    temperature: float
    tool_choice: Literal["none", "auto", "required"] | EchoedChoice
    tools: list[EchoedTool]
    top_p: float
    background: Literal[False] = False
    max_output_tokens: int
    max_tool_calls: None = None
    previous_response_id: None = None
    prompt: None = None
    reasoning: EchoedReasoning | None
    service_tier: Literal["auto", "default"]
    status: ResponseStatus
    text: EchoedText
    top_logprobs: int | None
    truncation: Literal["auto", "disabled"]
    usage: ResponseUsage | None
    user: str | None
    presence_penalty: float
    frequency_penalty: float
    store: Literal[False] = False
    prompt_cache_key: str | None
