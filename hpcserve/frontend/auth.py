"""Who may use the HTTP API: bearers of a key. It makes no keys and stores none."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from hpcserve.config.models import Config
from hpcserve.errors import Unauthorized

_OPEN_PATHS = frozenset({"/health", "/live"})


def auth_required(config: Config, cluster_kind: str, host: str) -> bool:
    """Return whether callers need a key, for a server on `host` whose workers come from `cluster_kind`.

    "auto" means no key on loopback of a machine of one's own; on a cluster's login node loopback is everybody's.
    """
    if config.security.auth != "auto":
        return config.security.auth == "on"
    return cluster_kind != "local" or not _is_loopback(host)


def require_key(api_keys: Iterable[str]) -> Middleware:
    """Return a middleware that lets through only requests with one of `api_keys`; probes stay open."""
    digests = [_digest(key) for key in api_keys]

    @web.middleware
    async def check_key(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path not in _OPEN_PATHS:
            _check(request, digests)
        return await handler(request)

    return check_key


def _check(request: web.Request, digests: list[bytes]) -> None:
    key = _key_of(request)
    if key is None:
        raise Unauthorized("no API key: send it as 'Authorization: Bearer KEY' (`hpcserve key` prints it)")
    given = _digest(key)
    # Every digest is compared, so that time tells nothing about which one came close.
    if sum(hmac.compare_digest(given, each) for each in digests) == 0:
        raise Unauthorized("wrong API key (`hpcserve key` prints the right one)")


def _key_of(request: web.Request) -> str | None:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return request.headers.get("api-key") or request.headers.get("x-api-key")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", errors="surrogateescape")).digest()


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False  # a name: where it resolves to may change
