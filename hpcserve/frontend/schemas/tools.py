"""The tools of a chat, and which of them the model may or must call."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from hpcserve.frontend.schemas.body import Body, NonEmptyText


class FunctionDefinition(Body):
    """What a function is called and takes; `parameters` is a JSON Schema."""

    name: NonEmptyText
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """Something that the model may ask its caller to run."""

    type: Literal["function"] = "function"
    function: FunctionDefinition

    def for_template(self) -> dict[str, Any]:
        """Return what a chat template and a tool parser see, with the fields that vLLM gives them."""
        function: dict[str, Any] = {
            "name": self.function.name,
            "description": self.function.description,
            "parameters": self.function.parameters,
        }
        if self.function.strict is not None:
            function["strict"] = self.function.strict
        return {"type": self.type, "function": function}


class FunctionName(Body):
    """A function by its name."""

    name: NonEmptyText


class NamedTool(Body):
    """The one tool that the model has to call."""

    type: Literal["function"] = "function"
    function: FunctionName


def _tool_choice(value: Any) -> Any:
    if isinstance(value, NamedTool) or value in ("none", "auto", "required"):
        return value
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise ValueError(
            "must be 'none', 'auto', 'required' or an object such as"
            ' {"type": "function", "function": {"name": "my_function"}}'
        )
    return NamedTool.model_validate(value)


_Choice = Literal["none", "auto", "required"]
ToolChoice = Annotated[_Choice | NamedTool, BeforeValidator(_tool_choice, json_schema_input_type=_Choice | NamedTool)]
