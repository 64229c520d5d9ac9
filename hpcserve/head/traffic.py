"""The traffic of all frontends together, out of what each of them reports while it is connected."""

from __future__ import annotations

from collections.abc import Hashable

import msgspec

from hpcserve.types import Traffic


class TrafficSum:
    """Adds up what is new in each report: counts outlive their frontend, and one that connects again adds nothing."""

    def __init__(self) -> None:
        self._counted = Traffic()
        self._last: dict[Hashable, Traffic] = {}

    def take(self, connection: Hashable, told: Traffic) -> None:
        """Take a report. What a frontend had counted before the first one over a connection is left out."""
        self._counted += told - self._last.get(connection, told)
        self._last[connection] = told

    def leave(self, connection: Hashable) -> None:
        """A connection has ended: what ran there does not any more, as far as is known."""
        self._last.pop(connection, None)

    def total(self) -> Traffic:
        """Return the counts since the head started, and what runs now."""
        return msgspec.structs.replace(
            self._counted,
            running=sum(each.running for each in self._last.values()),
            queued=sum(each.queued for each in self._last.values()),
        )
