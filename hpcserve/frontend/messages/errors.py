"""Errors as Anthropic's clients know them. Which error it is was decided before; this only words it.

Types and statuses: https://docs.anthropic.com/en/api/errors
"""

from __future__ import annotations

import msgspec

from hpcserve import errors
from hpcserve.errors import HpcserveError

_PREFIX = "/v1/messages"
_OVERLOADED_STATUS = 529
# The first class that fits says the type.
_TYPES: tuple[tuple[type[HpcserveError], str], ...] = (
    (errors.Unauthorized, "authentication_error"),
    (errors.RateLimited, "rate_limit_error"),
    (errors.NotFound, "not_found_error"),
    (errors.BodyTooLarge, "request_too_large"),
    (errors.BodyTooSlow, "timeout_error"),
    (errors.DeadlineExceeded, "timeout_error"),
    (errors.Overloaded, "overloaded_error"),
    (errors.BadRequest, "invalid_request_error"),
    (HpcserveError, "api_error"),
)


def is_message_path(path: str) -> bool:
    """Return whether who asks for `path` expects errors in this form."""
    return path == _PREFIX or path.startswith(_PREFIX + "/")


def message_error_status(error: HpcserveError | type[HpcserveError]) -> int:
    """Return the HTTP status of an error, or of a kind of errors."""
    kind = error if isinstance(error, type) else type(error)
    return _OVERLOADED_STATUS if issubclass(kind, errors.Overloaded) else kind.http_status


def message_error_body(error: HpcserveError, request_id: str | None) -> bytes:
    """Return the JSON for an error; in a stream it is the data of the event `error`."""
    kind = next(name for each, name in _TYPES if isinstance(error, each))
    body = {"type": "error", "error": {"type": kind, "message": error.message}, "request_id": request_id}
    return msgspec.json.encode(body)
