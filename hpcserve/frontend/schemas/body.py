"""What every JSON object of a request has in common, and the kinds of values in them.

Nothing is coerced: "5" is not a number. `null` means "not given", as OpenAI's clients send it.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1
MAX_CHOICES = 128
MAX_LOGPROBS = 20
_SESSION_ID = re.compile(r"[\x20-\x7e]{1,256}")


class Body(BaseModel):
    """A JSON object of a request."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: Any) -> Any:
        if isinstance(value, dict) and None in value.values():
            return {key: each for key, each in value.items() if each is not None}
        return value


def session_id(value: str) -> str:
    """Return `value` if it can name a session; raises `ValueError`."""
    if not _SESSION_ID.fullmatch(value):
        raise ValueError("must be 1 to 256 printable ASCII characters")
    return value


def one_or_more(value: Any) -> Any:
    """Return a list of one string for a string."""
    return [value] if isinstance(value, str) else value


def are_token_ids(value: list[Any]) -> bool:
    """Return whether it is a list of ids, at least one, of any vocabulary."""
    return bool(value) and all(type(each) is int and 0 <= each <= INT32_MAX for each in value)


def _not_empty(value: str) -> str:
    if not value:
        raise ValueError("must not be empty")
    return value


NonEmptyText = Annotated[str, AfterValidator(_not_empty), WithJsonSchema({"type": "string", "minLength": 1})]
SessionId = Annotated[
    str, AfterValidator(session_id), WithJsonSchema({"type": "string", "pattern": f"^{_SESSION_ID.pattern}$"})
]
TokenId = Annotated[int, Field(ge=0, le=INT32_MAX)]
