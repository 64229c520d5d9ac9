"""Parameters in the query of a URL: numbers are digits there, and everything else is a string."""

from __future__ import annotations

from typing import Any, TypeVar

from aiohttp import web

from hpcserve.errors import BadRequest
from hpcserve.frontend.schemas import Body
from hpcserve.frontend.validation import validate

B = TypeVar("B", bound=Body)

_MAX_DIGITS = 18


def read_query(request: web.Request, schema: type[B]) -> B:
    """Return the parameters as a body of `schema`. Raises `BadRequest`."""
    given: dict[str, Any] = {}
    for name, value in request.query.items():
        if name in given:
            raise BadRequest(f"{name[:80]} is there twice", param=name[:80])
        field = schema.model_fields.get(name)
        is_number = field is not None and field.annotation is int and value.isascii() and value.isdecimal()
        given[name] = int(value) if is_number and len(value) <= _MAX_DIGITS else value
    return validate(schema, given)
