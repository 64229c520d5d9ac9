"""What the input of a response is made of: messages, calls of functions and what they gave, reasoning.

Images, files and the items of OpenAI's own tools are refused by name. What an earlier response had as output is taken
as it is.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from hpcserve.frontend.schemas import Body, NonEmptyText

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class InputText(Body):
    """Text that somebody wrote."""

    type: Literal["input_text"]
    text: str


class OutputTextPart(Body):
    """Text of an earlier answer. Only the text is looked at."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any] = Field(default_factory=list)
    logprobs: list[Any] = Field(default_factory=list)


class RefusalPart(Body):
    """An earlier answer that was a refusal."""

    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        """What was said."""
        return self.refusal


def _parts(content: Any) -> Any:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ValueError("must be a string or a list of parts")
    return _known_types(content, _PART_TYPES, "a part")


def _output(value: Any) -> Any:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError("must be a string or a list of parts of type 'input_text'")
    return _known_types(value, ("input_text",), "a part")


def _known_types(values: list[Any], known: tuple[str, ...], noun: str) -> list[Any]:
    for value in values:
        if isinstance(value, dict) and value.get("type") not in known:
            kind, supported = str(value.get("type"))[:40], ", ".join(known)
            raise ValueError(f"has {noun} of type {kind!r}, which is not supported; supported: {supported}")
    return values


_PART_TYPES = ("input_text", "output_text", "refusal")
Part = Annotated[InputText | OutputTextPart | RefusalPart, Field(discriminator="type")]


class MessageItem(Body):
    """What somebody said, or what an earlier response answered."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Annotated[str | list[Part], BeforeValidator(_parts, json_schema_input_type=str | list[Part])]
    id: str | None = None
    status: ItemStatus | None = None
    phase: Literal["commentary", "final_answer"] | None = None

    @model_validator(mode="after")
    def _fits_its_role(self) -> Self:
        if self.role != "assistant" and not isinstance(self.content, str):
            for part in self.content:
                if part.type != "input_text":
                    raise ValueError(f"of role {self.role!r} takes no part of type {part.type!r}")
        return self

    @property
    def texts(self) -> list[str]:
        """The texts of its parts."""
        return [self.content] if isinstance(self.content, str) else [each.text for each in self.content]


class ModelCaller(Body):
    """Says that the model itself called a function."""

    type: Literal["direct"]


class FunctionCallItem(Body):
    """A call that the model asked for in an earlier response."""

    type: Literal["function_call"]
    call_id: NonEmptyText
    name: NonEmptyText
    arguments: str
    id: str | None = None
    status: ItemStatus | None = None
    caller: ModelCaller | None = None


class FunctionOutputItem(Body):
    """What a function gave."""

    type: Literal["function_call_output"]
    call_id: NonEmptyText
    output: Annotated[str | list[InputText], BeforeValidator(_output, json_schema_input_type=str | list[InputText])]
    id: str | None = None
    status: ItemStatus | None = None
    caller: ModelCaller | None = None

    @property
    def text(self) -> str:
        """The output as one string."""
        return self.output if isinstance(self.output, str) else "\n".join(each.text for each in self.output)


class ReasoningText(Body):
    """A part of what the model thought."""

    type: Literal["reasoning_text"]
    text: str


class SummaryText(Body):
    """A part of a summary of what the model thought."""

    type: Literal["summary_text"]
    text: str


class ReasoningItem(Body):
    """What the model thought before it answered. Encrypted reasoning is refused: only its maker can read it."""

    type: Literal["reasoning"]
    id: str | None = None
    content: list[ReasoningText] = Field(default_factory=list)
    summary: list[SummaryText] = Field(default_factory=list)
    status: ItemStatus | None = None

    @property
    def text(self) -> str:
        """The reasoning, or its summary where that is all there is."""
        return "".join(each.text for each in self.content or self.summary)


_ITEM_TYPES = ("message", "function_call", "function_call_output", "reasoning")
Item = MessageItem | FunctionCallItem | FunctionOutputItem | ReasoningItem
_AnyItem = Annotated[Item, Field(discriminator="type")]


def _items(value: Any) -> Any:
    """Return a list of items with their types; a string is what the user said."""
    if isinstance(value, str):
        return [MessageItem(role="user", content=value)]
    if not isinstance(value, list):
        raise ValueError("must be a string or a list of items")
    if not value:
        raise ValueError("must have at least one item")
    return _known_types([_with_type(each) for each in value], _ITEM_TYPES, "an item")


def _with_type(item: Any) -> Any:
    if isinstance(item, dict) and item.get("type") is None and "role" in item:
        return {**item, "type": "message"}
    return item


# Without a discriminator: a message needs no type.
_GivenItems = Annotated[list[Item], Field(min_length=1)]
Items = Annotated[list[_AnyItem], BeforeValidator(_items, json_schema_input_type=str | _GivenItems)]
