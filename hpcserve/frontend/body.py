"""Reads a request's body and decodes it to a JSON object, within limits. What is in the object is not checked here."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from aiohttp import web

from hpcserve.errors import BadRequest, BodyTooLarge, BodyTooSlow

_READ_TIMEOUT_S = 60.0


async def read_object(request: web.Request) -> dict[str, Any]:
    """Return the JSON object in the body. Raises `BadRequest`, `BodyTooLarge` or `BodyTooSlow`."""
    check_declared_size(request)
    # Refusing other types makes browsers ask before a page of somebody else's posts to a server on loopback.
    if request.content_type != "application/json":
        raise BadRequest(f"send the header Content-Type: application/json, got {request.content_type!r}")
    return decode_object(await _read(request))


def check_declared_size(request: web.Request) -> None:
    """Raise `BodyTooLarge` when Content-Length already says so."""
    length = request.content_length
    if length is not None and length > request.client_max_size:
        raise _too_large(request)


def decode_object(body: bytes) -> dict[str, Any]:
    """Decode JSON text that must hold an object. Raises `BadRequest`."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as err:
        raise BadRequest(f"the body is not valid JSON: {err}") from err
    except RecursionError as err:
        raise BadRequest("the body is not valid JSON: nested too deeply") from err
    if not isinstance(value, dict):
        raise BadRequest(f"the body must be a JSON object, got {_kind(value)}")
    return value


async def _read(request: web.Request) -> bytes:
    try:
        if request.content.is_eof():  # it came with the headers: nothing to wait for
            return await request.read()
        async with asyncio.timeout(_READ_TIMEOUT_S):
            return await request.read()
    except TimeoutError as err:
        raise BodyTooSlow(f"the body did not arrive within {_READ_TIMEOUT_S:.0f} s") from err
    except web.HTTPRequestEntityTooLarge as err:
        raise _too_large(request) from err
    except web.RequestPayloadError as err:
        raise BadRequest(f"the body cannot be read: {str(err).splitlines()[-1].strip()}") from err


def _too_large(request: web.Request) -> BodyTooLarge:
    limit_mb = request.client_max_size / 1e6
    return BodyTooLarge(f"the body is over the limit of {limit_mb:g} MB (frontend.max_body_mb)")


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
