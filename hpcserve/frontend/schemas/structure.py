"""What the generated text has to look like: OpenAI's `response_format`, and vLLM's `structured_outputs`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import msgspec
from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from hpcserve.frontend.schemas.body import Body, NonEmptyText
from hpcserve.types import StructuredOutput

_KINDS = ("json_schema", "regex", "choice", "grammar", "json_object", "structural_tag")
_TAG_FIELDS = ("format", "structures", "triggers")


class JsonSchema(Body):
    """A JSON Schema with a name. What is generated follows it, `strict` or not."""

    model_config = ConfigDict(populate_by_name=True)

    name: NonEmptyText
    description: str | None = None
    json_schema: dict[str, Any] = Field(alias="schema")  # "schema" is a method of pydantic's models
    strict: bool | None = None


class ResponseFormat(Body):
    """OpenAI's; `structural_tag`, in either of its forms, is vLLM's."""

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchema | None = None
    format: dict[str, Any] | None = None
    structures: list[dict[str, Any]] | None = None
    triggers: list[str] | None = None

    @model_validator(mode="after")
    def _has_what_its_type_needs(self) -> Self:
        if self.type == "structural_tag":
            if (self.format is None) == (self.structures is None or self.triggers is None):
                raise ValueError("of type 'structural_tag' needs either format, or structures and triggers")
        elif any(getattr(self, each) is not None for each in _TAG_FIELDS):
            raise ValueError(f"of type {self.type!r} takes no {', '.join(_TAG_FIELDS)}")
        if (self.type == "json_schema") != (self.json_schema is not None):
            verb = "needs" if self.json_schema is None else "takes no"
            raise ValueError(f"of type {self.type!r} {verb} json_schema")
        return self

    def structure(self) -> StructuredOutput | None:
        """Return what engines get; None for any text."""
        if self.type == "json_object":
            return StructuredOutput(kind="json_object")
        if self.json_schema is not None:
            return StructuredOutput(kind="json_schema", value=_json(self.json_schema.json_schema))
        if self.type == "structural_tag":
            fields = {name: getattr(self, name) for name in _TAG_FIELDS if getattr(self, name) is not None}
            return StructuredOutput(kind="structural_tag", value=_json({"type": self.type, **fields}))
        return None


def _text_or_object(value: Any) -> Any:
    if not isinstance(value, str | dict):
        raise ValueError("must be a JSON Schema: an object, or a string with one")
    return value


class StructuredOutputs(Body):
    """vLLM's: exactly one of its kinds."""

    model_config = ConfigDict(populate_by_name=True)

    json_schema: Annotated[
        str | dict[str, Any] | None, BeforeValidator(_text_or_object, json_schema_input_type=str | dict[str, Any])
    ] = Field(None, alias="json")  # "json" is a method of pydantic's models
    regex: NonEmptyText | None = None
    choice: Annotated[list[NonEmptyText], Field(min_length=1)] | None = None
    grammar: NonEmptyText | None = None
    json_object: Literal[True] | None = None
    structural_tag: NonEmptyText | None = None
    disable_any_whitespace: Literal[False] = False
    disable_additional_properties: Literal[False] = False

    @model_validator(mode="after")
    def _has_one(self) -> Self:
        if sum(getattr(self, name) is not None for name in _KINDS) != 1:
            raise ValueError("must have exactly one of json, regex, choice, grammar, json_object and structural_tag")
        return self

    def structure(self) -> StructuredOutput:
        """Return what engines get."""
        if self.json_schema is not None:
            schema = self.json_schema
            return StructuredOutput(kind="json_schema", value=schema if isinstance(schema, str) else _json(schema))
        if self.regex is not None:
            return StructuredOutput(kind="regex", value=self.regex)
        if self.choice is not None:
            return StructuredOutput(kind="choice", value=_json(self.choice))
        if self.grammar is not None:
            return StructuredOutput(kind="grammar", value=self.grammar)
        if self.structural_tag is not None:
            return StructuredOutput(kind="structural_tag", value=self.structural_tag)
        return StructuredOutput(kind="json_object")


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
