"""Files: records in the database, bytes in the directory. Each is its tenant's, and nobody else finds it."""

from __future__ import annotations

from pathlib import Path

import msgspec

from hpcserve.errors import BadRequest, NotFound
from hpcserve.jobs.blobs import Blobs
from hpcserve.jobs.database import Database
from hpcserve.jobs.pages import Page, Wanted, rows
from hpcserve.jobs.records import ACTIVE, FileRecord

_LEFT_OVER_S = 86_400.0  # an upload takes less, so what has no record by then never gets one

_decode = msgspec.json.Decoder(FileRecord).decode
_encode = msgspec.json.Encoder().encode


class Files:
    """All methods block; safe from any thread, and beside other processes. They raise `StorageFailed`."""

    def __init__(self, database: Database, blobs: Blobs) -> None:
        self._database = database
        self.blobs = blobs

    def add(self, record: FileRecord) -> None:
        """Record a file whose bytes are there. One that is recorded already stays as it is."""
        with self._database.writing() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO files (id, tenant, purpose, expires_at, record) VALUES (?, ?, ?, ?, ?)",
                (record.id, record.tenant, record.purpose, record.expires_at, _encode(record)),
            )

    def get(self, tenant: str, file_id: str, now: float) -> FileRecord:
        """Return a file. Raises `NotFound` for one that is not there, has expired, or is somebody else's."""
        with self._database.reading() as connection:
            found = connection.execute(
                "SELECT record FROM files WHERE id = ? AND tenant = ?", (file_id, tenant)
            ).fetchone()
        record = _decode(found[0]) if found else None
        if record is None or (record.expires_at is not None and record.expires_at <= now):
            raise NotFound(f"there is no file {file_id[:80]!r}")
        return record

    def path(self, record: FileRecord) -> Path:
        """Return where its bytes are."""
        return self.blobs.path(record.id)

    def page(self, tenant: str, wanted: Wanted, now: float) -> Page[FileRecord]:
        """Return a page of a tenant's files. Raises `NotFound` for an unknown `after`."""
        with self._database.reading() as connection:
            found = [_decode(each) for each in rows(connection, "files", tenant, wanted)]
        there = [each for each in found[: wanted.limit] if each.expires_at is None or each.expires_at > now]
        return Page(there, has_more=len(found) > wanted.limit)

    def remove(self, tenant: str, file_id: str) -> None:
        """Delete a file. Raises `NotFound`, and `BadRequest` while a batch reads it."""
        with self._database.writing() as connection:
            found = connection.execute("SELECT 1 FROM files WHERE id = ? AND tenant = ?", (file_id, tenant)).fetchone()
            if found is None:
                raise NotFound(f"there is no file {file_id[:80]!r}")
            marks = ", ".join("?" * len(ACTIVE))
            user = connection.execute(
                f"SELECT id FROM batches WHERE input_file_id = ? AND status IN ({marks})",  # noqa: S608
                (file_id, *ACTIVE),
            ).fetchone()
            if user is not None:
                raise BadRequest(f"the file is the input of {user[0]}, which is not finished; cancel that first")
            connection.execute("DELETE FROM files WHERE id = ?", (file_id,))
        self.blobs.remove(file_id)

    def sweep(self, now: float) -> int:
        """Delete files that have expired and that no batch reads, and what crashes left. Return how many."""
        marks = ", ".join("?" * len(ACTIVE))
        with self._database.writing() as connection:
            gone = connection.execute(
                "DELETE FROM files WHERE expires_at <= ? AND id NOT IN "  # noqa: S608
                f"(SELECT input_file_id FROM batches WHERE status IN ({marks})) RETURNING id",
                (now, *ACTIVE),
            ).fetchall()
            known = {row[0] for row in connection.execute("SELECT id FROM files")}
        for (file_id,) in gone:
            self.blobs.remove(file_id)
        return len(gone) + self.blobs.sweep(known, _LEFT_OVER_S)
