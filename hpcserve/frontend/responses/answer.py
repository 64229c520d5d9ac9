"""The response in one piece, and what its items are made of. Streams build the same items piece by piece."""

from __future__ import annotations

import secrets
from typing import Literal

from msgspec import UNSET

from hpcserve.frontend.collecting import Collected
from hpcserve.frontend.generation import Job
from hpcserve.frontend.logprobs import chat_logprobs
from hpcserve.frontend.replies import ChosenToken, CompletionTokensDetails, PromptTokensDetails, Usage
from hpcserve.frontend.responses.replies import (
    EchoedChoice,
    EchoedFormat,
    EchoedReasoning,
    EchoedText,
    EchoedTool,
    IncompleteDetails,
    InputTokensDetails,
    ItemStatus,
    OutputFunctionCall,
    OutputItem,
    OutputMessage,
    OutputReasoning,
    OutputText,
    OutputTokensDetails,
    ReasoningContent,
    Response,
    ResponseError,
    ResponseStatus,
    ResponseUsage,
)
from hpcserve.frontend.responses.schemas import FunctionChoice, FunctionTool, ResponsesBody, TextFormat
from hpcserve.types import ParsedDelta, TokenLogprob, ToolCallDelta


def whole_response(job: Job, body: ResponsesBody, collected: Collected, usage: Usage) -> Response:
    """Return the response to a request that has run."""
    is_cut = collected.finish_reason == "length"
    return response_of(job, body, "incomplete" if is_cut else "completed", _output(job, body, collected), usage)


def response_of(
    job: Job,
    body: ResponsesBody,
    status: ResponseStatus,
    output: list[OutputItem],
    usage: Usage | None = None,
    error: ResponseError | None = None,
) -> Response:
    """Return a response as it stands: what was asked for, and what came of it until now."""
    sampling = job.requests[0].sampling
    return Response(
        id="resp_" + job.request_id.rpartition("-")[2],
        created_at=job.created,
        error=error,
        incomplete_details=IncompleteDetails("max_output_tokens") if status == "incomplete" else None,
        instructions=body.instructions,
        metadata=body.metadata,
        model=job.model,
        output=output,
        parallel_tool_calls=body.parallel_tool_calls,
        temperature=sampling.temperature,
        tool_choice=_echoed_choice(body),
        tools=[_echoed_tool(each) for each in body.tools],
        top_p=sampling.top_p,
        max_output_tokens=sampling.max_tokens,
        reasoning=EchoedReasoning(body.reasoning.effort, None) if body.reasoning else None,
        service_tier=body.service_tier,
        status=status,
        text=EchoedText(_echoed_format(body.text.format if body.text else None)),
        top_logprobs=sampling.logprobs,
        truncation=body.truncation,
        usage=None if usage is None else _usage(usage),
        user=body.user,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        prompt_cache_key=body.prompt_cache_key,
    )


def item_id(prefix: str) -> str:
    """Return the id of a new item."""
    return f"{prefix}_{secrets.token_hex(16)}"


def message_item(id: str, parts: list[OutputText], status: ItemStatus) -> OutputMessage:  # noqa: A002 (the field's name)
    """Return what the model said."""
    return OutputMessage(id=id, content=parts, role="assistant", status=status)


def reasoning_item(id: str, text: str | None, status: ItemStatus) -> OutputReasoning:  # noqa: A002
    """Return what the model thought; nothing yet for None."""
    content = None if text is None else [ReasoningContent(text)]
    return OutputReasoning(id=id, summary=[], content=content, encrypted_content=None, status=status)


def call_id(call: ToolCallDelta) -> str:
    """Return the id by which the client answers a call: the parser's, or a new one."""
    return call.id or item_id("call")


def token_logprobs(body: ResponsesBody, tokens: list[TokenLogprob] | tuple[TokenLogprob, ...]) -> list[ChosenToken]:
    """Return the log probabilities of tokens in OpenAI's form."""
    return chat_logprobs(tokens, body.top_logprobs).content


def _output(job: Job, body: ResponsesBody, collected: Collected) -> list[OutputItem]:
    parsing = job.requests[0].parsing
    parsed = ParsedDelta(content=collected.text) if parsing is None else collected.parsed or ParsedDelta()
    calls = parsed.tool_calls[: None if body.parallel_tool_calls else 1]
    has_calls, has_content = bool(calls), bool(parsed.content)
    is_cut = collected.finish_reason == "length"
    items: list[OutputItem] = []
    if parsed.reasoning and body.include_reasoning:
        status = _status(is_cut and not has_calls and not has_content)
        items.append(reasoning_item(item_id("rs"), parsed.reasoning, status))
    if parsed.content:
        # Tokens of hidden reasoning would tell what it was.
        shows = body.gives_logprobs and (parsing is None or body.include_reasoning)
        logprobs = token_logprobs(body, collected.logprobs) if shows else None
        part = OutputText(annotations=[], text=parsed.content, logprobs=logprobs)
        items.append(message_item(item_id("msg"), [part], _status(is_cut and not has_calls)))
    items += [_call_item(each, _status(is_cut and each is calls[-1])) for each in calls]
    return items


def _status(is_cut: bool) -> ItemStatus:
    return "incomplete" if is_cut else "completed"


def _call_item(call: ToolCallDelta, status: ItemStatus) -> OutputFunctionCall:
    return OutputFunctionCall(
        arguments=call.arguments or "", call_id=call_id(call), name=call.name or "", id=item_id("fc"), status=status
    )


def _usage(usage: Usage) -> ResponseUsage:
    prompt, completion = usage.prompt_tokens_details, usage.completion_tokens_details
    return ResponseUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=InputTokensDetails(
            cached_tokens=prompt.cached_tokens if isinstance(prompt, PromptTokensDetails) else 0, cache_write_tokens=0
        ),
        output_tokens=usage.completion_tokens,
        output_tokens_details=OutputTokensDetails(
            completion.reasoning_tokens if isinstance(completion, CompletionTokensDetails) else 0
        ),
        total_tokens=usage.total_tokens,
    )


def _echoed_choice(body: ResponsesBody) -> EchoedChoice | Literal["none", "auto", "required"]:
    if isinstance(body.tool_choice, FunctionChoice):
        return EchoedChoice(body.tool_choice.name, "function")
    return body.tool_choice or "auto"


def _echoed_tool(tool: FunctionTool) -> EchoedTool:
    return EchoedTool(tool.name, tool.parameters, tool.strict, "function", tool.description)


def _echoed_format(wanted: TextFormat | None) -> EchoedFormat:
    if wanted is None or wanted.type != "json_schema":
        return EchoedFormat("text" if wanted is None else wanted.type)
    return EchoedFormat(
        "json_schema", wanted.name or UNSET, wanted.description, wanted.json_schema or UNSET, wanted.strict
    )
