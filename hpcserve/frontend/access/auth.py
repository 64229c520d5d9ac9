"""Who may use the HTTP API: bearers of a key, within their limits. It makes no keys and stores none."""

from __future__ import annotations

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from hpcserve.errors import Unauthorized
from hpcserve.frontend.access.key_ring import KeyRing
from hpcserve.frontend.context import RECORD
from hpcserve.keys import OWNER, TENANT_HEADER

_OPEN_ROUTES = frozenset({"/health", "/live", "/openapi.json", "/docs", "/", "/page/{name}"})


def require_key(keys: KeyRing) -> Middleware:
    """Return a middleware that lets through only requests with one of `keys`; probes and descriptions stay open.

    It notes whose key it was. What is posted counts against the limits of that tenant, before its body is read.
    """

    @web.middleware
    async def check_key(request: web.Request, handler: Handler) -> web.StreamResponse:
        resource = request.match_info.route.resource
        if resource is not None and resource.canonical in _OPEN_ROUTES:
            return await handler(request)
        tenant = request[RECORD].tenant = await keys.find(_key_of(request))
        acts_for = request.headers.get(TENANT_HEADER) if tenant.name == OWNER else None
        if acts_for is not None:
            request[RECORD].tenant = keys.acting_for(tenant, acts_for)
        if request.method != "POST" or acts_for is not None:
            return await handler(request)
        async with tenant.meter.running():
            return await handler(request)

    return check_key


def _key_of(request: web.Request) -> str:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    key = request.headers.get("api-key") or request.headers.get("x-api-key")
    if not key:
        raise Unauthorized(
            "no API key: send it as 'Authorization: Bearer KEY', or in the header x-api-key (`hpcserve key` prints it)"
        )
    return key
