"""The outermost middleware: every error becomes a body that clients of the route know, every request is accounted."""

from __future__ import annotations

import asyncio
import logging
import math

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from hpcserve.errors import (
    BadRequest,
    HpcserveError,
    MethodNotAllowed,
    NotFound,
    Unauthorized,
    Unavailable,
)
from hpcserve.frontend.accounting import account, account_disconnect, begin
from hpcserve.frontend.context import RECORD
from hpcserve.frontend.messages.errors import is_message_path, message_error_body, message_error_status

log = logging.getLogger(__name__)

_RETRY_AFTER_S = 5.0  # where nobody knows better


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer whatever the handler raises, echo the request id, count and log."""
    record = begin(request)
    try:
        response = await _answer(request, handler)
    except asyncio.CancelledError:
        account_disconnect(request, record)
        raise
    except ConnectionError:
        # Raised further it would be logged as a failure of ours; this goes to nobody.
        return web.Response(status=account_disconnect(request, record))
    if not response.prepared:
        response.headers.update(id_headers(request))
    account(request, record, response.status)
    return response


def error_body(error: HpcserveError) -> bytes:
    """Return OpenAI's JSON for an error."""
    body = {"message": error.message, "type": error.error_type, "param": error.param, "code": error.code}
    return msgspec.json.encode({"error": body})


def id_headers(request: web.Request) -> dict[str, str]:
    """Return the headers that tell the request id, by the names that clients of the route know."""
    request_id = request[RECORD].request_id
    if is_message_path(request.path):
        return {"x-request-id": request_id, "request-id": request_id}
    return {"x-request-id": request_id}


def error_response(error: HpcserveError, request: web.Request | None = None) -> web.Response:
    """Return the HTTP response for an error, in the form that clients of the route know: OpenAI's, or Anthropic's."""
    headers = {}
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = 'Bearer realm="hpcserve"'
    retry_after_s = error.retry_after_s
    if retry_after_s is None and isinstance(error, Unavailable):
        retry_after_s = _RETRY_AFTER_S
    if retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(retry_after_s)))  # whole seconds: RFC 9110, 10.2.3
    if request is not None and is_message_path(request.path):
        record = request.get(RECORD)
        body = message_error_body(error, record.request_id if record is not None else None)
        return json_response(body, status=message_error_status(error), headers=headers)
    return json_response(error_body(error), status=error.http_status, headers=headers)


def json_response(body: bytes, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """Return a response with JSON text."""
    return web.Response(body=body, status=status, headers=headers, content_type="application/json")


async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except HpcserveError as err:
        return _refused(request, err)
    except web.HTTPException as err:
        return _translate(request, err)
    except ConnectionError:
        raise
    except Exception:
        log.exception("%s %s failed (id %s)", request.method, request.path, request[RECORD].request_id)
        return _refused(request, HpcserveError(f"internal error; see the log for id {request[RECORD].request_id}"))


def _translate(request: web.Request, error: web.HTTPException) -> web.Response:
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        refusal = MethodNotAllowed(f"{request.method} is not allowed on {request.path}; use {allowed}")
        response = _refused(request, refusal)
        response.headers["Allow"] = allowed
        return response
    if isinstance(error, web.HTTPNotFound):
        return _refused(request, NotFound(f"there is no route {request.path}; the API is under /v1"))
    response = _refused(request, BadRequest(error.reason))
    response.set_status(error.status)
    return response


def _refused(request: web.Request, error: HpcserveError) -> web.Response:
    request[RECORD].error = error.message
    return error_response(error, request)
