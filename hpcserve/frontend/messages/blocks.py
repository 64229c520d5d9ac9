"""The messages of Anthropic's API and the blocks that their content is made of.

Images, documents and the blocks of Anthropic's own server tools are refused by name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from hpcserve.frontend.schemas import Body, NonEmptyText

Hint = Annotated[Any, Field(description="Taken and ignored: every prefix is cached.")]


class Block(Body):
    """What all blocks have in common."""

    cache_control: Hint = None


class TextBlock(Block):
    """Text."""

    type: Literal["text"]
    text: str
    citations: Annotated[list[Any], Field(max_length=0)] = Field(default_factory=list)


class ThinkingBlock(Block):
    """Reasoning of an earlier answer. The signature is not looked at."""

    type: Literal["thinking"]
    thinking: str
    signature: str = ""


class RedactedThinkingBlock(Block):
    """Reasoning that only its maker can read: no model here sees it."""

    type: Literal["redacted_thinking"]
    data: str


class DirectCaller(Body):
    """Says that the model itself called a tool."""

    type: Literal["direct"]


class ToolUseBlock(Block):
    """A call that the model asked for in an earlier answer."""

    type: Literal["tool_use"]
    id: NonEmptyText
    name: NonEmptyText
    input: dict[str, Any]
    caller: DirectCaller | None = None


def as_blocks(content: Any) -> Any:
    """Return a list of blocks for a string. Raises `ValueError` for what is no block that is served here."""
    if isinstance(content, str):
        return [TextBlock(type="text", text=content)]
    if not isinstance(content, list):
        raise ValueError("must be a string or a list of blocks")
    for block in content:
        if isinstance(block, dict) and block.get("type") not in _TYPES:
            kind = str(block.get("type"))[:40]
            raise ValueError(f"has a block of type {kind!r}, which is not supported; supported: {', '.join(_TYPES)}")
    return content


TextBlocks = Annotated[list[TextBlock], BeforeValidator(as_blocks, json_schema_input_type=str | list[TextBlock])]


class ToolResultBlock(Block):
    """What a tool answered. `is_error` is not told to the model, as chat templates have no place for it."""

    type: Literal["tool_result"]
    tool_use_id: NonEmptyText
    content: TextBlocks = Field(default_factory=list)
    is_error: bool = False


_TYPES = ("text", "thinking", "redacted_thinking", "tool_use", "tool_result")
_Any = Annotated[
    TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock | ToolResultBlock, Field(discriminator="type")
]
_OF_ROLE = {
    "user": ("text", "tool_result"),
    "assistant": ("text", "thinking", "redacted_thinking", "tool_use"),
    "system": ("text",),
}


class InputMessage(Body):
    """What somebody said."""

    role: Literal["user", "assistant", "system"]
    content: Annotated[list[_Any], BeforeValidator(as_blocks, json_schema_input_type=str | list[_Any])]

    @model_validator(mode="after")
    def _fits_its_role(self) -> Self:
        for block in self.content:
            if block.type not in _OF_ROLE[self.role]:
                raise ValueError(f"of role {self.role!r} takes no block of type {block.type!r}")
        return self

    def texts(self) -> list[str]:
        """Return the texts of its text blocks."""
        return [each.text for each in self.content if isinstance(each, TextBlock)]
