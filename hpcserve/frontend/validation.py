"""From a decoded body to a validated one, with messages that say which field is wrong and what to change."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from hpcserve.errors import BadRequest, Unsupported, did_you_mean
from hpcserve.frontend import unsupported
from hpcserve.frontend.schemas import (
    Body,
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    NamedTool,
    TokenizeChatBody,
    TokenizeTextBody,
)

B = TypeVar("B", bound=Body)

_TYPES = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "string_type": "a string",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "finite_number": "a finite number",
}
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("greater than", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
}


def parse_chat(raw: dict[str, Any]) -> ChatBody:
    """Validate the body of a chat completion. Raises `BadRequest`."""
    body = validate(ChatBody, _strip_chat(raw, unsupported.CHAT))
    check_chat(body)
    return body


def check_chat(body: ChatBody) -> None:
    """Raise `BadRequest` where fields of a conversation contradict each other."""
    if body.top_logprobs and not body.logprobs:
        raise BadRequest("top_logprobs needs logprobs to be true", param="top_logprobs")
    if body.max_tokens and body.max_completion_tokens and body.max_tokens != body.max_completion_tokens:
        message = f"max_tokens ({body.max_tokens}) and max_completion_tokens ({body.max_completion_tokens}) differ"
        raise BadRequest(message + "; send one of them", param="max_tokens")
    if body.continue_final_message and body.add_generation_prompt:
        message = "continue_final_message and add_generation_prompt cannot both be true"
        raise BadRequest(message, param="continue_final_message")
    _check_tool_choice(body)


def _check_tool_choice(body: ChatBody) -> None:
    choice = body.tool_choice
    if choice not in (None, "none") and body.tools is None:
        raise BadRequest("tool_choice needs tools", param="tool_choice")
    if isinstance(choice, NamedTool) and choice.function.name not in [each.function.name for each in body.tools or ()]:
        name = choice.function.name[:60]
        raise BadRequest(f"tool_choice names {name!r}, which is none of the tools", param="tool_choice")


def parse_completion(raw: dict[str, Any]) -> CompletionBody:
    """Validate the body of a completion. Raises `BadRequest`."""
    fields = unsupported.strip_unsupported(raw, unsupported.COMPLETION)
    best_of = fields.pop("best_of", None)
    body = validate(CompletionBody, fields)
    if best_of is not None and (type(best_of) is not int or best_of != body.n):
        message = f"best_of = {_shown(best_of)} is not supported unless it equals n ({body.n})"
        raise Unsupported(message, param="best_of")
    if body.echo and body.logprobs is not None:
        raise BadRequest("logprobs with echo is not supported; leave one of them out", param="logprobs")
    return body


def parse_tokenize(raw: dict[str, Any]) -> TokenizeTextBody | TokenizeChatBody:
    """Validate the body of /tokenize, in either of its forms. Raises `BadRequest`."""
    if raw.get("messages") is not None:
        if raw.get("prompt") is not None:
            raise BadRequest("send either prompt or messages, not both", param="prompt")
        return validate(TokenizeChatBody, _strip_chat(raw, unsupported.TOKENIZE_CHAT))
    if raw.get("prompt") is None:
        raise BadRequest("prompt or messages is required", param="prompt")
    return validate(TokenizeTextBody, unsupported.strip_unsupported(raw, {}))


def parse_detokenize(raw: dict[str, Any]) -> DetokenizeBody:
    """Validate the body of /detokenize. Raises `BadRequest`."""
    return validate(DetokenizeBody, unsupported.strip_unsupported(raw, {}))


def _strip_chat(raw: dict[str, Any], known: dict[str, tuple[Any, ...]]) -> dict[str, Any]:
    fields = unsupported.strip_unsupported(raw, known)
    if isinstance(fields.get("messages"), list):
        fields["messages"] = [
            unsupported.strip_unsupported(each, unsupported.MESSAGE, f"messages[{i}].") if type(each) is dict else each
            for i, each in enumerate(fields["messages"])
        ]
    return fields


def validate(schema: type[B], fields: dict[str, Any]) -> B:
    """Return `fields` as a body of `schema`. Raises `BadRequest` for the first field that is wrong."""
    if fields.get("stream_options") and not fields.get("stream"):
        raise BadRequest("stream_options needs stream to be true", param="stream_options")
    try:
        return schema.model_validate(fields)
    except ValidationError as err:
        # The first error is enough: the next may be a consequence of it.
        raise _translate(err.errors(include_url=False)[0], schema) from None


def _translate(error: ErrorDetails, schema: type[Body]) -> BadRequest:
    param = _path(error["loc"])
    kind, given = error["type"], _shown(error["input"])
    context = error.get("ctx", {})
    if kind == "missing":
        message = f"{param} is required"
    elif kind == "extra_forbidden":
        advice = did_you_mean(str(error["loc"][-1]), schema.model_fields) if len(error["loc"]) == 1 else ""
        message = f"unknown field {param!r}{advice}"
    elif kind in _TYPES:
        message = f"{param} must be {_TYPES[kind]}, got {given}"
    elif kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        message = f"{param} must be {words} {_number(context[key])}, got {given}"
    elif kind == "too_short":
        message = f"{param} must have at least {context['min_length']} item"
    elif kind == "literal_error":
        message = f"{param} must be {context['expected']}, got {given}"
    elif kind == "value_error":
        message = f"{param} {context['error']}"
    else:
        message = f"{param}: {error['msg']}, got {given}"
    return BadRequest(message, param=param)


def _path(location: tuple[int | str, ...]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part[:80]}" if path else part[:80]
    return path


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
