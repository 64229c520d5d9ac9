"""A file of keys in memory, and clocks that stand until the test moves them."""

from __future__ import annotations

from collections.abc import Sequence

from hpcserve.errors import DeploymentError
from hpcserve.keys import KeyRecord, Limits, Snapshot, Stamp, digest


def record(
    name: str,
    key: str,
    *,
    priority: int = 0,
    expires: float | None = None,
    models: tuple[str, ...] | None = None,
    **limits: int,
) -> KeyRecord:
    return KeyRecord(
        name=name,
        sha256=digest(key).hex(),
        created=0.0,
        expires=expires,
        priority=priority,
        limits=Limits(**limits),
        models=models,
    )


class FakeKeys:
    def __init__(self, *records: KeyRecord) -> None:
        self.records: Sequence[KeyRecord] = records
        self.version = 1
        self.num_reads = 0
        self.broken = ""

    def change(self, *records: KeyRecord) -> None:
        self.records = records
        self.version += 1

    def read_if_changed(self, since: Stamp | None) -> Snapshot | None:
        self.num_reads += 1
        if self.broken:
            raise DeploymentError(self.broken)
        stamp = (self.version, 0, 0)
        return Snapshot(stamp, self.records) if stamp != since else None


class FakeClock:
    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
