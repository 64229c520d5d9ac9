"""Where a deployment's endpoint is, and an HTTP session to it: over TCP or a Unix socket, plain or with TLS."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from hpcserve.errors import ConfigError
from hpcserve.keys import TENANT_HEADER

_CONNECT_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible endpoint."""

    url: str  # ends in /v1
    key: str | None = None
    unix_socket: str | None = None  # path; the host in `url` is not looked up then
    ca_file: Path | None = None  # trusted besides the system's
    tenant: str | None = None  # whom it is asked for; only the deployment's own key may say so

    @property
    def name(self) -> str:
        """What to call it in messages."""
        return self.unix_socket or self.url

    def url_of(self, path: str) -> str:
        """Return the URL of an operation, such as /v1/models."""
        return self.url.removesuffix("/").removesuffix("/v1") + path


def connect(endpoint: Endpoint, timeout_s: float) -> aiohttp.ClientSession:
    """Return a session without a limit of its own; close it. Raises `ConfigError` for an unusable certificate."""
    connector: aiohttp.BaseConnector
    if endpoint.unix_socket is not None:
        connector = aiohttp.UnixConnector(endpoint.unix_socket, limit=0)
    else:
        connector = aiohttp.TCPConnector(limit=0, ssl=_trust(endpoint.ca_file))
    headers = {"Content-Type": "application/json"}
    if endpoint.key:
        headers["Authorization"] = f"Bearer {endpoint.key}"
    if endpoint.tenant:
        headers[TENANT_HEADER] = endpoint.tenant
    timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=_CONNECT_TIMEOUT_S)
    return aiohttp.ClientSession(connector=connector, headers=headers, timeout=timeout)


def _trust(ca_file: Path | None) -> ssl.SSLContext | bool:
    if ca_file is None:
        return True
    context = ssl.create_default_context()
    try:
        context.load_verify_locations(ca_file)
    except (OSError, ssl.SSLError) as err:
        raise ConfigError(f"cannot read certificates in {ca_file}: {err}") from err
    return context
