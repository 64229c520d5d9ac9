"""From Anthropic's bodies to the body of a chat completion, field by field as vLLM's server turns them.

Other than there, an answer that the client has begun is continued, as Anthropic's API says.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from hpcserve.errors import BadRequest
from hpcserve.frontend.messages.blocks import InputMessage, ThinkingBlock, ToolResultBlock, ToolUseBlock
from hpcserve.frontend.messages.schemas import ClientTool, ConversationBody, MessagesBody
from hpcserve.frontend.schemas import (
    ChatBody,
    ChatMessage,
    FunctionDefinition,
    FunctionName,
    JsonSchema,
    NamedTool,
    ResponseFormat,
    TextPart,
    Tool,
    ToolCall,
    ToolCallFunction,
)

# Claude Code's first system block, which differs from request to request and would keep prefixes from being shared.
_BILLING_HEADER = "x-anthropic-billing-header"


def chat_body_of(body: ConversationBody) -> ChatBody:
    """Return the chat completion that is asked for. Raises `BadRequest` for a conversation that cannot be answered."""
    messages = _messages(body)
    last = messages[-1]
    is_continued = last.role == "assistant" and last.content is not None
    if last.tool_calls:
        raise BadRequest("messages end with a tool_use block; a tool_result has to follow", param="messages")
    choice = body.tool_choice
    chat = ChatBody(
        model=body.model,
        messages=messages,
        tools=[_tool(each) for each in body.tools] or None,
        tool_choice=_tool_choice(body),
        parallel_tool_calls=choice is None or not choice.disable_parallel_tool_use,
        response_format=_response_format(body),
        reasoning_effort=_effort(body),
        include_reasoning=body.thinking is None or body.thinking.display != "omitted",
        add_generation_prompt=not is_continued,
        continue_final_message=is_continued,
        chat_template_kwargs=body.chat_template_kwargs,
    )
    return chat.model_copy(update=_sampling(body)) if isinstance(body, MessagesBody) else chat


def _sampling(body: MessagesBody) -> dict[str, object]:
    fields: dict[str, object] = {
        "max_tokens": body.max_tokens,
        "stop": body.stop_sequences,
        "stream": body.stream,
        "user": body.metadata.user_id if body.metadata else None,
    }
    for name in ("temperature", "top_p", "top_k", "priority", "cache_salt"):
        fields[name] = getattr(body, name)
    return fields


def _messages(body: ConversationBody) -> list[ChatMessage]:
    messages = []
    system = _system_text(each.text for each in body.system)
    if system:
        messages.append(ChatMessage(role="system", content=system))
    for message in body.messages:
        messages.extend(_of_message(message))
    if not any(each.role != "system" for each in messages):
        raise BadRequest("messages have no content", param="messages")
    return messages


def _of_message(message: InputMessage) -> list[ChatMessage]:
    if message.role == "assistant":
        return _of_assistant(message)
    if message.role == "system":
        text = _system_text(message.texts())
        return [ChatMessage(role="system", content=text)] if text else []
    # Results come first, as what follows them was said by somebody who had seen them.
    results = [_of_result(each) for each in message.content if isinstance(each, ToolResultBlock)]
    texts = message.texts()
    return [*results, ChatMessage(role="user", content=_parts(texts))] if texts or not results else results


def _of_assistant(message: InputMessage) -> list[ChatMessage]:
    texts = [each for each in message.texts() if each]
    calls = [_tool_call(each) for each in message.content if isinstance(each, ToolUseBlock)]
    thoughts = [each.thinking for each in message.content if isinstance(each, ThinkingBlock)]
    if not (texts or calls or thoughts):
        return []
    return [
        ChatMessage(
            role="assistant",
            content=_parts(texts) if texts else None,
            tool_calls=calls or None,
            reasoning="".join(thoughts) if thoughts else None,
        )
    ]


def _of_result(block: ToolResultBlock) -> ChatMessage:
    text = "\n".join(each.text for each in block.content)
    return ChatMessage(role="tool", tool_call_id=block.tool_use_id, content=text)


def _parts(texts: list[str]) -> str | list[TextPart]:
    return texts[0] if len(texts) == 1 else [TextPart(text=each) for each in texts]


def _system_text(texts: Iterable[str]) -> str:
    return "".join(each for each in texts if not each.startswith(_BILLING_HEADER))


def _tool_call(block: ToolUseBlock) -> ToolCall:
    arguments = msgspec.json.encode(block.input).decode()
    return ToolCall(id=block.id, function=ToolCallFunction(name=block.name, arguments=arguments))


def _tool(tool: ClientTool) -> Tool:
    parameters = {"type": "object", **tool.input_schema}
    return Tool(
        function=FunctionDefinition(
            name=tool.name, description=tool.description, parameters=parameters, strict=tool.strict
        )
    )


def _tool_choice(body: ConversationBody) -> Literal["none", "auto", "required"] | NamedTool | None:
    choice = body.tool_choice
    if choice is None:
        return None
    if choice.type == "tool":
        return NamedTool(function=FunctionName(name=choice.name or ""))
    if choice.type == "any":
        return "required"
    return choice.type


def _response_format(body: ConversationBody) -> ResponseFormat | None:
    wanted = body.output_config.format if body.output_config else None
    if wanted is None:
        return None
    return ResponseFormat(type="json_schema", json_schema=JsonSchema(name=wanted.type, json_schema=wanted.json_schema))


def _effort(body: ConversationBody) -> Literal["none", "low", "medium", "high", "xhigh", "max"] | None:
    if body.thinking is not None and body.thinking.type == "disabled":
        return "none"
    return body.output_config.effort if body.output_config else None
