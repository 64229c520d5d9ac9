"""Tenants as the frontend treats them: whose key a request came with, and what follows from that."""

from __future__ import annotations

import hashlib
import hmac
import time
from dataclasses import dataclass

from hpcserve.errors import ModelNotFound
from hpcserve.frontend.access.shared_limits import TenantMeter
from hpcserve.keys import OWNER, Limits
from hpcserve.limits import Meter

_SALT_BYTES = 16  # nobody meets one of 128 bits by chance


@dataclass(eq=False)
class Tenant:
    """One tenant. It lives as long as its key, over changes of its terms, so that limits count on."""

    name: str  # empty where nobody is asked for a key
    meter: TenantMeter
    priority: int | None = None  # class; None: whatever the request says
    salt_key: bytes | None = None  # None: its prefixes may be shared with others
    expires: float | None = None  # Unix time
    models: frozenset[str] | None = None  # that it may use; None: all

    @property
    def sees_tenants(self) -> bool:
        """Whether it may know what the others used: the operator may, and everybody where there are no others."""
        return self.name in ("", OWNER)

    def may_use(self, model: str) -> bool:
        """Whether its key is good for `model`."""
        return self.models is None or model in self.models

    def check_model(self, model: str) -> None:
        """Raise `ModelNotFound` for a model that its key is not good for; whether there is one is not told."""
        if not self.may_use(model):
            message = f"the model {model[:100]!r} does not exist, or your key is not good for it; see /v1/models"
            raise ModelNotFound(message, param="model")

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
