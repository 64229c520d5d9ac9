"""The answer to a chat completion in one piece, with the fields of vLLM's server in their order."""

from __future__ import annotations

import secrets
from typing import Literal

from msgspec import UNSET

from hpcserve.frontend.collecting import Collected
from hpcserve.frontend.generation import Job
from hpcserve.frontend.logprobs import chat_logprobs
from hpcserve.frontend.replies import (
    SYSTEM_FINGERPRINT,
    CalledFunction,
    ChatChoice,
    ChatCompletion,
    ChatReplyMessage,
    ToolCallReply,
    Usage,
    whole_usage,
)
from hpcserve.frontend.schemas import ChatBody
from hpcserve.types import ChatParsing, FinishReason, ParsedDelta, ToolCallDelta


def chat_reply(job: Job, body: ChatBody, choices: list[Collected], usage: Usage) -> ChatCompletion:
    """Return the answer with all its choices."""
    return ChatCompletion(
        id=job.request_id,
        object="chat.completion",
        created=job.created,
        model=job.model,
        choices=[_choice(index, each, job.requests[0].parsing, body) for index, each in enumerate(choices)],
        service_tier=None,
        system_fingerprint=SYSTEM_FINGERPRINT,
        usage=whole_usage(usage),
        prompt_logprobs=None,
        prompt_token_ids=job.requests[0].token_ids if body.return_token_ids else None,
        prompt_text=None,
    )


def _choice(index: int, collected: Collected, parsing: ChatParsing | None, body: ChatBody) -> ChatChoice:
    if parsing is None:
        message = _message(collected.text)
    else:
        message = _parsed_message(collected.parsed or ParsedDelta(content=collected.text), parsing)
    # Tokens of hidden reasoning would tell what it was.
    hides = parsing is not None and not body.include_reasoning
    logprobs = None
    if body.logprobs and not hides:
        logprobs = chat_logprobs(collected.logprobs, body.top_logprobs, body.return_tokens_as_token_ids)
    return ChatChoice(
        index=index,
        message=message,
        logprobs=logprobs,
        finish_reason=_finish_reason(collected.finish_reason, message, parsing),
        stop_reason=collected.stop_reason,
        token_ids=collected.token_ids if body.return_token_ids and not hides else None,
    )


def _message(content: str | None) -> ChatReplyMessage:
    return ChatReplyMessage("assistant", content, None, None, None, None)


def _parsed_message(parsed: ParsedDelta, parsing: ChatParsing) -> ChatReplyMessage:
    calls = [_call(each) for each in parsed.tool_calls[: None if parsing.parallel_tool_calls else 1]]
    must_call = parsing.tool_choice not in ("none", "auto")
    reasoning = parsed.reasoning if parsing.include_reasoning else None
    return ChatReplyMessage(
        role="assistant",
        content=parsed.content or "" if must_call else parsed.content,
        refusal=None,
        annotations=None,
        audio=None,
        function_call=None,
        tool_calls=calls or UNSET,
        reasoning=reasoning,
        reasoning_content=UNSET if reasoning is None else reasoning,
    )


def _call(call: ToolCallDelta) -> ToolCallReply:
    return ToolCallReply(
        id=call.id or f"chatcmpl-tool-{secrets.token_hex(8)}",
        type="function",
        function=CalledFunction(name=call.name or "", arguments=call.arguments or ""),
    )


def _finish_reason(
    reason: FinishReason | None, message: ChatReplyMessage, parsing: ChatParsing | None
) -> FinishReason | Literal["tool_calls"] | None:
    """Return the reason that a client is told; for a function that was named it stays "stop", as OpenAI has it."""
    choice = None if parsing is None else parsing.tool_choice
    if (choice == "auto" and message.tool_calls) or (choice == "required" and reason == "stop"):
        return "tool_calls"
    return reason
