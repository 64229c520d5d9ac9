"""From a decoded body to a validated one. Whether the engines can do it is checked later."""

from __future__ import annotations

from typing import Any

from hpcserve.errors import BadRequest
from hpcserve.frontend.responses.schemas import LOGPROBS, RESPONSES, ResponsesBody
from hpcserve.frontend.unsupported import strip_unsupported
from hpcserve.frontend.validation import validate


def parse_responses(raw: dict[str, Any]) -> ResponsesBody:
    """Validate the body of /v1/responses. Raises `BadRequest`."""
    body = validate(ResponsesBody, strip_unsupported(raw, RESPONSES))
    if body.top_logprobs and not body.gives_logprobs:
        raise BadRequest(f"top_logprobs needs {LOGPROBS!r} in include", param="top_logprobs")
    return body
