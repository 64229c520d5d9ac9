"""The SQLite file, as several processes share it, also on a network file system. It knows no files and no batches.

Every use opens a connection of its own: nothing is held, locks least of all. The journal is a rollback journal: a
write-ahead log needs memory that all processes share, which hosts of one network file system do not.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpcserve.errors import StorageFailed

_TIMEOUT_S = 20.0  # for another's write to end
_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    purpose TEXT NOT NULL,
    expires_at INTEGER,
    record BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS files_of ON files (tenant, number);
CREATE TABLE IF NOT EXISTS batches (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    status TEXT NOT NULL,
    input_file_id TEXT NOT NULL,
    record BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS batches_of ON batches (tenant, number);
CREATE INDEX IF NOT EXISTS batches_by_status ON batches (status, number);
"""


class Database:
    """One file, made 0600 where there is none. All methods block; safe from any thread."""

    def __init__(self, path: Path) -> None:
        """Raises `StorageFailed` where it cannot be made."""
        self.path = path
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as err:
            raise StorageFailed(f"cannot write {path}: {err.strerror}") from err
        with self._connection() as connection:
            connection.executescript(_SCHEMA)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Look at what is there. Raises `StorageFailed`."""
        with self._connection() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Change something in one step, alone; nothing is changed where the body raises. Raises `StorageFailed`."""
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.rollback()
                raise
            connection.commit()

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            connection = sqlite3.connect(self.path, timeout=_TIMEOUT_S, isolation_level=None)
            try:
                yield connection
            finally:
                connection.close()
        except sqlite3.Error as err:
            raise StorageFailed(f"{self.path}: {err}; try again later") from err
