"""The body of /v1/completions."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from hpcserve.frontend.schemas.body import MAX_LOGPROBS, TokenId, are_token_ids
from hpcserve.frontend.schemas.generation import GenerationBody


def _prompts(value: Any) -> list[str] | list[list[int]]:
    """Return a prompt, in whichever of its four forms, as a list of prompts of one kind."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(isinstance(each, str) for each in value):
            return value
        if are_token_ids(value):
            return [value]
        if all(isinstance(each, list) and are_token_ids(each) for each in value):
            return value
    raise ValueError("must be a string, a list of strings, a list of token ids, or a list of lists of token ids")


# What `_prompts` takes, for the description of the API.
_TokenIds = Annotated[list[TokenId], Field(min_length=1)]
_AnyPrompt = (
    str | Annotated[list[str], Field(min_length=1)] | _TokenIds | Annotated[list[_TokenIds], Field(min_length=1)]
)


Prompts = Annotated[Any, BeforeValidator(_prompts, json_schema_input_type=_AnyPrompt)]
"""One or more texts, or as many lists of token ids."""


class CompletionBody(GenerationBody):
    """The body of /v1/completions."""

    prompt: Prompts
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    echo: bool = False
    add_special_tokens: bool = True
