"""A conversation as it is put before the model: what its chat template is rendered with, the same as with vLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from hpcserve.frontend.prompts.chat_template import ChatTemplate
from hpcserve.frontend.schemas import ChatBody, ChatMessage, TokenizeChatBody


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Messages, and all else that a chat template sees."""

    messages: Sequence[ChatMessage]
    tools: Sequence[Mapping[str, Any]] | None = None  # as `Tool.for_template` gives them
    documents: Sequence[Mapping[str, str]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = False  # the tokenizer's, besides those that the template writes
    variables: Mapping[str, Any] = field(default_factory=dict)  # of the model's own template

    @property
    def num_chars(self) -> int:
        """About how long the prompt will be."""
        tools = len(msgspec.json.encode(self.tools)) if self.tools else 0
        return sum(_num_chars(each) for each in self.messages) + tools

    def render(self, template: ChatTemplate) -> str:
        """Return the prompt. Raises `BadRequest` if the template refuses the conversation."""
        return template.render(
            [each.for_template(template.content_format) for each in self.messages],
            add_generation_prompt=self.add_generation_prompt,
            continue_final_message=self.continue_final_message,
            tools=self.tools,
            documents=self.documents,
            extra=self.variables,
        )


def conversation_of(body: ChatBody | TokenizeChatBody) -> Conversation:
    """Return the conversation that a body asks to continue, or to count."""
    adds_prompt = body.add_generation_prompt
    return Conversation(
        messages=body.messages,
        tools=None if body.tools is None else [each.for_template() for each in body.tools],
        documents=body.documents if isinstance(body, ChatBody) else None,
        add_generation_prompt=not body.continue_final_message if adds_prompt is None else adds_prompt,
        continue_final_message=body.continue_final_message,
        add_special_tokens=body.add_special_tokens,
        variables=template_variables(body) if isinstance(body, ChatBody) else body.chat_template_kwargs,
    )


def template_variables(body: ChatBody) -> dict[str, Any]:
    """Return the variables of the model's own template: the body's, and how hard to think where it says so."""
    variables = dict(body.chat_template_kwargs)
    if body.reasoning_effort is not None:
        variables.setdefault("enable_thinking", body.reasoning_effort != "none")
        variables["reasoning_effort"] = body.reasoning_effort
    return variables


def _num_chars(message: ChatMessage) -> int:
    calls = sum(len(each.function.arguments) for each in message.tool_calls or ())
    return len(message.text) + len(message.reasoning or message.reasoning_content or "") + calls
