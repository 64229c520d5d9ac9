"""From a decoded body to a validated one of Anthropic's. Whether the engines can do it is checked later."""

from __future__ import annotations

from typing import Any

from hpcserve.errors import BadRequest
from hpcserve.frontend.messages import schemas
from hpcserve.frontend.messages.schemas import CountTokensBody, MessagesBody
from hpcserve.frontend.unsupported import strip_unsupported
from hpcserve.frontend.validation import validate


def parse_messages(raw: dict[str, Any]) -> MessagesBody:
    """Validate the body of /v1/messages. Raises `BadRequest`."""
    body = validate(MessagesBody, strip_unsupported(raw, schemas.MESSAGES))
    budget = body.thinking.budget_tokens if body.thinking else None
    if budget is not None and budget >= body.max_tokens:
        message = f"thinking.budget_tokens ({budget}) must be less than max_tokens ({body.max_tokens})"
        raise BadRequest(message, param="thinking.budget_tokens")
    return body


def parse_count_tokens(raw: dict[str, Any]) -> CountTokensBody:
    """Validate the body of /v1/messages/count_tokens. Raises `BadRequest`."""
    return validate(CountTokensBody, strip_unsupported(raw, schemas.COUNT_TOKENS))
