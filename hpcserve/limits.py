"""What one tenant uses, held against what it may. Counts in this process only, and never waits: it refuses.

A frontend that is alone counts by itself; several have the head count for all of them (`frontend.shared_limits`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType

from hpcserve.errors import RateLimited
from hpcserve.keys import Limits

Clock = Callable[[], float]
"""Seconds from any origin, never going back."""

_RETRY_WHEN_FULL_S = 1.0  # when one of the tenant's own requests ends, nobody can say


class TokenBucket:
    """Holds a minute's worth and refills evenly.

    What is known only afterwards may overdraw it: the debt is waited for.
    """

    def __init__(self, per_minute: int, clock: Clock) -> None:
        self._capacity = float(per_minute)
        self._rate = per_minute / 60.0
        self._clock = clock
        self._level = self._capacity
        self._at = clock()

    def wait_s(self, amount: float) -> float:
        """Return in how many seconds `amount` can be had; 0 for now."""
        self._refill()
        return max(0.0, amount - self._level) / self._rate

    def take(self, amount: float) -> None:
        """Take, or with a negative amount give back."""
        self._refill()
        self._level = min(self._capacity, self._level - amount)

    def _refill(self) -> None:
        now = self._clock()
        self._level = min(self._capacity, self._level + (now - self._at) * self._rate)
        self._at = now


class Meter:
    """The limits of one tenant, and what it has used of them."""

    def __init__(self, tenant: str, limits: Limits, clock: Clock) -> None:
        self._tenant = tenant
        self._clock = clock
        self._num_running = 0
        self._limits = Limits()
        self._requests: TokenBucket | None = None
        self._tokens: TokenBucket | None = None
        self.limit_to(limits)

    def limit_to(self, limits: Limits) -> None:
        """Take new limits. What was used of those that stay the same is remembered."""
        old, self._limits = self._limits, limits
        if limits.requests_per_minute != old.requests_per_minute:
            self._requests = self._bucket(limits.requests_per_minute)
        if limits.tokens_per_minute != old.tokens_per_minute:
            self._tokens = self._bucket(limits.tokens_per_minute)

    def running(self) -> AbstractAsyncContextManager[None]:
        """Count one request for as long as it is entered. Entering raises `RateLimited` where it may not begin."""
        return _Running(self)

    def begin(self) -> None:
        """Count one request until `end`. Raises `RateLimited` where it may not begin."""
        self._check_room()
        self._check(self._requests, f"{self._limits.requests_per_minute} requests a minute")
        self._check(self._tokens, f"{self._limits.tokens_per_minute} tokens a minute")
        if self._requests is not None:
            self._requests.take(1)
        self._num_running += 1

    def end(self) -> None:
        """One that has begun has ended."""
        self._num_running -= 1

    def count_tokens(self, num_tokens: int) -> None:
        """Count tokens of a request that runs or has run; what goes over the limit delays the tenant's next ones."""
        if self._tokens is not None:
            self._tokens.take(num_tokens)

    def _check_room(self) -> None:
        most = self._limits.max_concurrent
        if most is not None and self._num_running >= most:
            raise RateLimited(
                f"the key of {self._tenant!r} may have {most} requests under way at once; wait for one to end",
                retry_after_s=_RETRY_WHEN_FULL_S,
            )

    def _check(self, bucket: TokenBucket | None, limit: str) -> None:
        wait_s = 0.0 if bucket is None else bucket.wait_s(1)
        if wait_s > 0:
            raise RateLimited(
                f"the key of {self._tenant!r} is limited to {limit}; try again in {math.ceil(wait_s)} s",
                retry_after_s=wait_s,
            )

    def _bucket(self, per_minute: int | None) -> TokenBucket | None:
        return None if per_minute is None else TokenBucket(per_minute, self._clock)


class _Running:
    __slots__ = ("_meter",)

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    async def __aenter__(self) -> None:
        self._meter.begin()

    async def __aexit__(
        self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._meter.end()
