"""Finds the tenant of a key, in the deployment's own key and the file of keys, which is read again when it changes."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Callable
from datetime import datetime
from typing import Protocol

from hpcserve.errors import DeploymentError, Unauthorized
from hpcserve.frontend.access.shared_limits import TenantMeter
from hpcserve.frontend.access.tenants import Tenant, salt_key
from hpcserve.keys import OWNER, KeyRecord, Limits, Snapshot, Stamp, digest
from hpcserve.limits import Clock, Meter

log = logging.getLogger(__name__)

_CHECK_INTERVAL_S = 1.0


class KeySource(Protocol):
    """Where keys come from: a `KeyFile`."""

    def read_if_changed(self, since: Stamp | None) -> Snapshot | None:
        """Return all keys, or None if they are as they were at `since`. May block; raises `DeploymentError`."""
        ...


class KeyRing:
    """The keys that open this frontend, and their tenants.

    The deployment's own key is the operator's: it has no limits, and its requests any priority.
    """

    def __init__(
        self,
        own_key: str | None,
        salt_secret: bytes | None = None,
        source: KeySource | None = None,
        *,
        clock: Clock = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        make_meter: Callable[[str], TenantMeter] | None = None,
    ) -> None:
        """Read the keys. Without `salt_secret` tenants share prefixes; without `make_meter` this process counts alone.

        Raises `DeploymentError` for a damaged file."""
        self._salt_secret = salt_secret
        self._source = source
        self._clock, self._wall_clock = clock, wall_clock
        self._make_meter = make_meter or (lambda name: Meter(name, Limits(), clock))
        owner = self._tenant(OWNER)
        self._own = _entry(digest(own_key), owner) if own_key else {}
        self._tenants = dict(self._own)
        self._stamp: Stamp | None = None
        self._next_check = clock() + _CHECK_INTERVAL_S
        self._complaint = ""
        if source is not None:
            self._take(source.read_if_changed(None))

    async def find(self, key: str) -> Tenant:
        """Return whose key this is. Raises `Unauthorized` for a wrong, revoked or expired one."""
        now = self._clock()
        if self._source is not None and now >= self._next_check:
            self._next_check = now + _CHECK_INTERVAL_S
            await self._reload(self._source)
        tenant = self._look_up(digest(key))
        if tenant is None:
            raise Unauthorized("wrong or revoked API key (`hpcserve key` prints the deployment's own)")
        if tenant.expires is not None and self._wall_clock() >= tenant.expires:
            day = datetime.fromtimestamp(tenant.expires).astimezone().isoformat(" ", "minutes")
            raise Unauthorized(f"the API key of {tenant.name!r} expired on {day}; ask for a new one")
        return tenant

    def acting_for(self, owner: Tenant, name: str) -> Tenant:
        """Return `owner`, the bearer of the deployment's own key, as it acts for the tenant called `name`.

        What is used counts as that tenant's, and so do prefixes; its limits were no concern when the work was taken.
        Raises `Unauthorized` where there is no such tenant any more, or the bearer is another.
        """
        if name == OWNER and owner.name == OWNER:
            return owner
        known = next((tenant for _, tenant in self._tenants.values() if tenant.name == name), None)
        if owner.name != OWNER or known is None:
            raise Unauthorized(f"nobody can act for {name[:80]!r}: its key was revoked, or yours is not the operator's")
        return Tenant(name, Meter(name, Limits(), self._clock), salt_key=known.salt_key, models=known.models)

    def _look_up(self, given: bytes) -> Tenant | None:
        # A table, so that many keys cost a request no more than one. It compares digests only where their hashes, which
        # are seeded anew in each process, are equal: its time tells nothing of near misses.
        digest_of_key, tenant = self._tenants.get(given, (b"", None))
        return tenant if hmac.compare_digest(digest_of_key, given) else None

    async def _reload(self, source: KeySource) -> None:
        """Read the file if it changed, beside the loop, as file systems hang; keep what was read if it cannot be."""
        try:
            snapshot = await asyncio.to_thread(source.read_if_changed, self._stamp)
        except DeploymentError as err:
            if err.message != self._complaint:
                log.error("the keys stay as they were: %s", err.message)
            self._complaint = err.message
            return
        self._complaint = ""
        if snapshot is not None:
            self._take(snapshot)
            log.info("read the keys of %d tenants", len(snapshot.records))

    def _take(self, snapshot: Snapshot | None) -> None:
        if snapshot is None:
            return
        known = {tenant.name: tenant for _, tenant in self._tenants.values()}
        tenants = dict(self._own)
        for record in snapshot.records:
            tenant = known.get(record.name) or self._tenant(record.name)
            _set_terms(tenant, record)
            tenants |= _entry(bytes.fromhex(record.sha256), tenant)
        self._tenants, self._stamp = tenants, snapshot.stamp

    def _tenant(self, name: str) -> Tenant:
        key = None if self._salt_secret is None else salt_key(self._salt_secret, name)
        return Tenant(name, self._make_meter(name), salt_key=key)


def _entry(digest_of_key: bytes, tenant: Tenant) -> dict[bytes, tuple[bytes, Tenant]]:
    return {digest_of_key: (digest_of_key, tenant)}


def _set_terms(tenant: Tenant, record: KeyRecord) -> None:
    tenant.priority = record.priority
    tenant.expires = record.expires
    tenant.models = None if record.models is None else frozenset(record.models)
    tenant.meter.limit_to(record.limits)
