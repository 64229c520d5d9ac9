"""The messages of a conversation, as chats take them, and as chat templates see them."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from hpcserve.frontend.schemas.body import Body, NonEmptyText

ContentFormat = Literal["string", "openai"]
"""Whether a chat template expects the content of a message as a string or as a list of parts."""


_ONLY_OF_ASSISTANTS = ("tool_calls", "reasoning", "reasoning_content")


class TextPart(BaseModel):
    """A part of a message's content. Other fields of it are ignored."""

    model_config = ConfigDict(json_schema_extra={"required": ["type", "text"]})

    type: Literal["text"] = "text"
    text: str


class ToolCallFunction(Body):
    """The function that was called; the arguments are JSON text."""

    name: NonEmptyText
    arguments: str = ""
    parsed_arguments: Any = None  # what OpenAI's client made of the arguments; ignored


class ToolCall(Body):
    """A call that the model asked for in an earlier answer."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: ToolCallFunction
    index: int | None = None  # streams have it; clients send back what they collected

    def for_template(self) -> dict[str, Any]:
        """Return what a chat template sees: the arguments as an object, `{}` where they are none."""
        function = {"name": self.function.name, "arguments": _as_object(self.function.arguments)}
        return ({} if self.id is None else {"id": self.id}) | {"type": self.type, "function": function}


def _supported_role(role: Any) -> Any:
    if role == "function":
        raise ValueError("'function' is not supported; use role 'tool' with tool_call_id")
    return role


def _content(content: Any) -> Any:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ValueError("must be a string or a list of text parts")
    return [part if isinstance(part, TextPart) else _text_part(part) for part in content]


def _text_part(part: Any) -> TextPart:
    if not isinstance(part, dict) or "type" not in part:
        raise ValueError('has a part that is not an object such as {"type": "text", "text": "…"}')
    text = part.get("refusal" if part["type"] == "refusal" else "text")
    if part["type"] not in ("text", "refusal"):
        raise ValueError(f"has a part of type {str(part['type'])[:40]!r}; only text is supported")
    if not isinstance(text, str):
        raise ValueError(f"has a {part['type']} part without a string in {part['type']!r}")
    return TextPart(text=text)


def _says_what_roles_take(schema: dict[str, Any]) -> None:
    nothing = {"type": "null"}
    only_of_assistants = dict.fromkeys(_ONLY_OF_ASSISTANTS, nothing)
    content = {"type": ["string", "array"]}
    schema["anyOf"] = [
        {"properties": {"role": {"const": "assistant"}, "tool_call_id": nothing}},
        {"properties": {"role": {"const": "tool"}, "content": content, **only_of_assistants}, "required": ["content"]},
        {
            "properties": {
                "role": {"enum": ["system", "developer", "user"]},
                "content": content,
                "tool_call_id": nothing,
                **only_of_assistants,
            },
            "required": ["content"],
        },
    ]


class ChatMessage(Body):
    """What somebody said."""

    model_config = ConfigDict(json_schema_extra=_says_what_roles_take)

    role: Annotated[
        Literal["system", "developer", "user", "assistant", "tool"],
        BeforeValidator(
            _supported_role, json_schema_input_type=Literal["system", "developer", "user", "assistant", "tool"]
        ),
    ]
    content: Annotated[
        str | list[TextPart] | None, BeforeValidator(_content, json_schema_input_type=str | list[TextPart] | None)
    ] = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None  # what `reasoning` was called earlier

    @model_validator(mode="after")
    def _fits_its_role(self) -> Self:
        if self.role != "assistant":
            if self.content is None:
                raise ValueError("needs content")
            for name in _ONLY_OF_ASSISTANTS:
                if getattr(self, name) is not None:
                    raise ValueError(f"of role {self.role!r} takes no {name}")
        if self.tool_call_id is not None and self.role != "tool":
            raise ValueError(f"of role {self.role!r} takes no tool_call_id")
        return self

    @property
    def text(self) -> str:
        """The content as one string, as vLLM joins parts."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content or ""

    def for_template(self, content_format: ContentFormat = "string") -> dict[str, Any]:
        """Return what a chat template sees: the same as with vLLM."""
        content = self.text if content_format == "string" or self.role == "tool" else self._parts()
        message: dict[str, Any] = {"role": self.role, "content": content}
        if self.tool_calls:
            message["tool_calls"] = [each.for_template() for each in self.tool_calls]
        reasoning = self.reasoning if self.reasoning is not None else self.reasoning_content
        if reasoning is not None:
            message["reasoning"] = message["reasoning_content"] = reasoning
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        if self.name is not None:
            message["name"] = self.name
        return message

    def _parts(self) -> list[dict[str, str]]:
        if self.content is None:
            return []
        parts = [TextPart(text=self.content)] if isinstance(self.content, str) else self.content
        return [{"type": each.type, "text": each.text} for each in parts]


def _as_object(arguments: str) -> dict[str, Any]:
    # What is no object was the model's mistake in an earlier turn; refusing it would end the conversation for good.
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
