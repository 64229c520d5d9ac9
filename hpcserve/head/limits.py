"""What tenants use of all frontends together, where there are several. Asked before a limited tenant's request."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Hashable

from hpcserve.keys import Limits
from hpcserve.limits import Clock, Meter


class LimitBook:
    """One meter a tenant. Requests that run belong to the connection that began them, and end with it."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._meters: dict[str, Meter] = {}
        self._running: dict[Hashable, Counter[str]] = {}

    def begin(self, connection: Hashable, tenant: str, limits: Limits) -> None:
        """Count one request, held against the newest limits that a frontend knows. Raises `RateLimited`."""
        meter = self._meters.get(tenant)
        if meter is None:
            meter = self._meters[tenant] = Meter(tenant, limits, self._clock)
        meter.limit_to(limits)
        meter.begin()
        self._running.setdefault(connection, Counter())[tenant] += 1

    def end(self, connection: Hashable, tenant: str) -> None:
        """One of the tenant's has ended; one that began at another head is not known here."""
        running = self._running.get(connection)
        if running is not None and running[tenant] > 0:
            running[tenant] -= 1
            self._meters[tenant].end()

    def count_tokens(self, tenant: str, num_tokens: int) -> None:
        """Count tokens of a tenant that has begun something."""
        if tenant in self._meters:
            self._meters[tenant].count_tokens(num_tokens)

    def leave(self, connection: Hashable) -> None:
        """A connection has ended, and with it what it ran."""
        for tenant, number in self._running.pop(connection, Counter()).items():
            for _ in range(number):
                self._meters[tenant].end()
