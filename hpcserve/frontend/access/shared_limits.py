"""Limits of tenants where several frontends serve: the head counts for all of them, at the price of asking it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

from hpcserve.keys import Limits


class TenantMeter(Protocol):
    """What one tenant uses: a `limits.Meter`, or the head's."""

    def limit_to(self, limits: Limits) -> None:
        """Take new limits. What was used of those that stay the same is remembered."""
        ...

    def running(self) -> AbstractAsyncContextManager[None]:
        """Count one request for as long as it is entered. Entering raises `RateLimited` where it may not begin."""
        ...

    def count_tokens(self, num_tokens: int) -> None:
        """Count tokens; what goes over the limit delays the tenant's next requests."""
        ...


class Accounts(Protocol):
    """Who counts for all frontends: a `dispatch.head.HeadLink`."""

    async def begin(self, tenant: str, limits: Limits) -> None:
        """Count one request of this frontend until `end`, or until the connection ends.

        Raises `RateLimited` where it may not begin, and `Unavailable` without a head.
        """
        ...

    def end(self, tenant: str) -> None:
        """One that has begun has ended."""
        ...

    def count_tokens(self, tenant: str, num_tokens: int) -> None:
        """Count tokens."""
        ...


class SharedMeter:
    """One tenant's part. Without limits nobody is asked anything."""

    def __init__(self, tenant: str, accounts: Accounts) -> None:
        self._tenant = tenant
        self._accounts = accounts
        self._limits = Limits()

    def limit_to(self, limits: Limits) -> None:
        """Have the next requests held against these."""
        self._limits = limits

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Ask before, and tell after. Raises `RateLimited` and `Unavailable`."""
        if self._limits == Limits():
            yield
            return
        await self._accounts.begin(self._tenant, self._limits)
        try:
            yield
        finally:
            self._accounts.end(self._tenant)

    def count_tokens(self, num_tokens: int) -> None:
        """Tell, where tokens are limited."""
        if self._limits.tokens_per_minute is not None:
            self._accounts.count_tokens(self._tenant, num_tokens)
