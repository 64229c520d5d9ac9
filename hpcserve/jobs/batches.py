"""Batches: one record each, changed in steps that are whole or not there. Each is its tenant's."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from hpcserve.errors import NotFound
from hpcserve.jobs.database import Database
from hpcserve.jobs.pages import Page, Wanted, rows
from hpcserve.jobs.records import ACTIVE, BatchRecord, RequestCounts

_decode = msgspec.json.Decoder(BatchRecord).decode
_encode = msgspec.json.Encoder().encode


class Batches:
    """All methods block; safe from any thread, and beside other processes. They raise `StorageFailed`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, record: BatchRecord) -> None:
        """Record a new batch. Raises `NotFound` where its input has gone meanwhile."""
        with self._database.writing() as connection:
            query = "SELECT 1 FROM files WHERE id = ? AND tenant = ?"
            if connection.execute(query, (record.input_file_id, record.tenant)).fetchone() is None:
                raise NotFound(f"there is no file {record.input_file_id!r}", param="input_file_id")
            connection.execute(
                "INSERT INTO batches (id, tenant, status, input_file_id, record) VALUES (?, ?, ?, ?, ?)",
                (record.id, record.tenant, record.status, record.input_file_id, _encode(record)),
            )

    def get(self, tenant: str, batch_id: str) -> BatchRecord:
        """Return a batch. Raises `NotFound` for one that is not there or is somebody else's."""
        with self._database.reading() as connection:
            query = "SELECT record FROM batches WHERE id = ? AND tenant = ?"
            found = connection.execute(query, (batch_id, tenant)).fetchone()
        if found is None:
            raise NotFound(f"there is no batch {batch_id[:80]!r}")
        return _decode(found[0])

    def page(self, tenant: str, wanted: Wanted) -> Page[BatchRecord]:
        """Return a page of a tenant's batches. Raises `NotFound` for an unknown `after`."""
        with self._database.reading() as connection:
            found = [_decode(each) for each in rows(connection, "batches", tenant, wanted)]
        return Page(found[: wanted.limit], has_more=len(found) > wanted.limit)

    def unfinished(self) -> list[BatchRecord]:
        """Return those of all tenants of which something is still to be made, in the order they came."""
        marks = ", ".join("?" * len(ACTIVE))
        with self._database.reading() as connection:
            query = f"SELECT record FROM batches WHERE status IN ({marks}) ORDER BY number"  # noqa: S608
            return [_decode(row[0]) for row in connection.execute(query, ACTIVE)]

    def has_unfinished(self) -> bool:
        """Return whether there are any."""
        marks = ", ".join("?" * len(ACTIVE))
        with self._database.reading() as connection:
            query = f"SELECT 1 FROM batches WHERE status IN ({marks}) LIMIT 1"  # noqa: S608
            return connection.execute(query, ACTIVE).fetchone() is not None

    def change(self, batch_id: str, step: Callable[[BatchRecord], BatchRecord]) -> BatchRecord:
        """Replace a batch by what `step` makes of it, while nobody else changes it; return that. Raises `NotFound`."""
        with self._database.writing() as connection:
            found = connection.execute("SELECT record FROM batches WHERE id = ?", (batch_id,)).fetchone()
            if found is None:
                raise NotFound(f"there is no batch {batch_id[:80]!r}")
            before = _decode(found[0])
            after = step(before)
            if after != before:
                connection.execute(
                    "UPDATE batches SET status = ?, record = ? WHERE id = ?", (after.status, _encode(after), batch_id)
                )
        return after

    def counts(self) -> tuple[dict[str, int], RequestCounts]:
        """Return how many there are by status, and the requests of those that are not finished."""
        with self._database.reading() as connection:
            by_status = dict(connection.execute("SELECT status, COUNT(*) FROM batches GROUP BY status").fetchall())
        each = [record.counts for record in self.unfinished()]
        sums = (sum(getattr(count, name) for count in each) for name in ("total", "completed", "failed"))
        total, completed, failed = sums
        return by_status, RequestCounts(total=total, completed=completed, failed=failed)
