"""Tenants as the frontend treats them: whose key a request came with, and what follows from that."""

from __future__ import annotations

import hashlib
import hmac
import time
from dataclasses import dataclass

from hpcserve.frontend.limits import Meter
from hpcserve.keys import Limits

_SALT_BYTES = 16  # nobody meets one of 128 bits by chance


@dataclass(eq=False)
class Tenant:
    """One tenant. It lives as long as its key, over changes of its terms, so that limits count on."""

    name: str  # empty where nobody is asked for a key
    meter: Meter
    priority: int | None = None  # class; None: whatever the request says
    salt_key: bytes | None = None  # None: its prefixes may be shared with others
    expires: float | None = None  # Unix time

    def priority_of(self, asked: int | None) -> int:
        """Return the priority of a request that asks for `asked`: never ahead of the tenant's class."""
        if self.priority is None:
            return asked or 0
        return self.priority if asked is None else max(self.priority, asked)

    def salt_of(self, asked: str | None) -> str | None:
        """Return the cache salt of a request that asks for `asked`: one that no other tenant can have or guess."""
        if self.salt_key is None:
            return asked
        message = b"" if asked is None else b"=" + asked.encode()
        return hmac.digest(self.salt_key, message, hashlib.sha256)[:_SALT_BYTES].hex()


ANYBODY = Tenant("", Meter("", Limits(), time.monotonic))
"""Who sends requests where no key is asked for."""


def salt_key(secret: bytes, tenant: str) -> bytes:
    """Return the key of a tenant's salts, made from the deployment's secret: tenant names alone would be guessed."""
    return hmac.digest(secret, tenant.encode(), hashlib.sha256)
