"""From the body of a response to the body of a chat completion, item by item as vLLM's server turns them."""

from __future__ import annotations

import re
from typing import Any, Literal

from hpcserve.errors import BadRequest
from hpcserve.frontend.responses.items import (
    FunctionCallItem,
    FunctionOutputItem,
    Item,
    MessageItem,
    ReasoningItem,
)
from hpcserve.frontend.responses.schemas import FunctionChoice, ResponsesBody
from hpcserve.frontend.schemas import (
    ChatBody,
    ChatMessage,
    FunctionName,
    NamedTool,
    TextPart,
    ToolCall,
    ToolCallFunction,
)

_SAME = (
    "temperature",
    "top_p",
    "top_logprobs",
    "parallel_tool_calls",
    "stream",
    "user",
    "metadata",
    "include_reasoning",
    "structured_outputs",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "skip_special_tokens",
    "include_stop_str_in_output",
    "chat_template_kwargs",
    "priority",
    "cache_salt",
)
# What has another name in a chat.
_NAMES = {
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
    "messages": "input",
    "reasoning_effort": "reasoning.effort",
}
_NAMED_IN_TEXT = re.compile(r"\b(max_tokens|response_format|reasoning_effort)\b")


def chat_body_of(body: ResponsesBody) -> ChatBody:
    """Return the chat completion that is asked for. Raises `BadRequest` for input that cannot be answered."""
    is_continued = _is_unfinished(body.input[-1])
    chat = ChatBody(
        model=body.model,
        messages=_messages(body),
        tools=[each.for_chat() for each in body.tools] or None,
        tool_choice=_tool_choice(body),
        response_format=body.text.format.for_chat() if body.text and body.text.format else None,
        reasoning_effort=body.reasoning.effort if body.reasoning else None,
        add_generation_prompt=not is_continued,
        continue_final_message=is_continued,
    )
    fields: dict[str, Any] = {name: getattr(body, name) for name in _SAME}
    fields["max_tokens"] = body.max_output_tokens
    fields["logprobs"] = body.gives_logprobs
    fields["prompt_cache_key"] = body.session_id or body.prompt_cache_key
    return chat.model_copy(update=fields)


def in_words_of_responses(error: BadRequest) -> BadRequest:
    """Return an error about the chat with the names that its fields have in the request."""
    message = _NAMED_IN_TEXT.sub(lambda found: _NAMES[found[1]], error.message)
    param = None if error.param is None else _NAMES.get(error.param, error.param)
    return type(error)(message, param=param, retry_after_s=error.retry_after_s)


def _is_unfinished(item: Item) -> bool:
    """Return whether the last item is an answer that is to be continued."""
    if item.status in (None, "completed"):
        return False
    if isinstance(item, ReasoningItem):
        message = "input ends with reasoning that is not complete, which cannot be continued; leave it out"
        raise BadRequest(message, param="input")
    return isinstance(item, MessageItem) and item.role == "assistant"


def _tool_choice(body: ResponsesBody) -> Literal["none", "auto", "required"] | NamedTool | None:
    choice = body.tool_choice
    if isinstance(choice, FunctionChoice):
        return NamedTool(function=FunctionName(name=choice.name))
    return None if choice == "auto" and not body.tools else choice


def _messages(body: ResponsesBody) -> list[ChatMessage]:
    messages = [ChatMessage(role="system", content=body.instructions)] if body.instructions else []
    for item in body.input:
        message = _message(item)
        if not (messages and message.role == "assistant" and _joins(messages[-1], message, item)):
            messages.append(message)
    return messages


def _message(item: Item) -> ChatMessage:
    if isinstance(item, ReasoningItem):
        return ChatMessage(role="assistant", reasoning=item.text)
    if isinstance(item, FunctionCallItem):
        function = ToolCallFunction(name=item.name, arguments=item.arguments)
        return ChatMessage(role="assistant", tool_calls=[ToolCall(id=item.call_id, function=function)])
    if isinstance(item, FunctionOutputItem):
        return ChatMessage(role="tool", tool_call_id=item.call_id, content=item.text)
    texts = item.texts
    return ChatMessage(role=item.role, content=texts[0] if len(texts) == 1 else [TextPart(text=each) for each in texts])


def _joins(message: ChatMessage, more: ChatMessage, item: Item) -> bool:
    """Put what an item says into the assistant's message before it, where that has nothing of the kind yet."""
    if message.role != "assistant":
        return False
    if isinstance(item, FunctionCallItem):
        message.tool_calls = [*(message.tool_calls or ()), *(more.tool_calls or ())]
        return True
    name = "reasoning" if isinstance(item, ReasoningItem) else "content"
    if getattr(message, name) is not None:
        return False
    setattr(message, name, getattr(more, name))
    return True
