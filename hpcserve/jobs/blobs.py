"""The bytes of files: a directory with one file each, there in whole or not at all. It knows no records."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from hpcserve.errors import BodyTooLarge, StorageFailed

_PART = ".part"


class Blobs:
    """The directory, made 0700 where there is none. All methods block."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700, exist_ok=True)

    def path(self, file_id: str) -> Path:
        """Return where the bytes of a file are, or would be. Only for ids that were made here."""
        return self._directory / file_id

    def writer(self, file_id: str, max_bytes: int) -> BlobWriter:
        """Return what writes a new one."""
        return BlobWriter(self.path(file_id), max_bytes)

    def take(self, file_id: str, path: Path) -> int:
        """Make a file that is there already, on the same file system, one of these; return its size in bytes."""
        target = self.path(file_id)
        try:
            target.unlink(missing_ok=True)
            os.link(path, target)
            _sync_directory(self._directory)
            return target.stat().st_size
        except OSError as err:
            raise StorageFailed(f"cannot write {target}: {err.strerror}") from err

    def remove(self, file_id: str) -> None:
        """Forget the bytes of a file. Unknown ones are ignored."""
        self.path(file_id).unlink(missing_ok=True)

    def sweep(self, known: Collection[str], older_than_s: float) -> int:
        """Remove what crashes left: files that no record speaks of. Young ones may get theirs yet. Return how many."""
        before = time.time() - older_than_s
        left = [each for each in self._directory.iterdir() if each.name not in known and each.lstat().st_mtime < before]
        for path in left:
            path.unlink(missing_ok=True)
        return len(left)


class BlobWriter:
    """Writes one file beside its place. On leaving nothing is left of it, unless `keep` was called before."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self._part = path.with_name(path.name + _PART)
        self._max_bytes = max_bytes
        self._file: BinaryIO | None = None
        self.num_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        self.drop()

    def write(self, data: bytes) -> None:
        """Append. Raises `BodyTooLarge` beyond the limit, and `StorageFailed`."""
        self.num_bytes += len(data)
        if self.num_bytes > self._max_bytes:
            limit_mb = self._max_bytes / 1e6
            raise BodyTooLarge(f"the file is over the limit of {limit_mb:g} MB (batches.max_file_mb)", param="file")
        try:
            if self._file is None:
                self._file = os.fdopen(os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
            self._file.write(data)
        except OSError as err:
            raise StorageFailed(f"cannot write {self._part}: {err.strerror}") from err

    def keep(self) -> None:
        """Put it on disk, and in its place. Raises `StorageFailed`."""
        self.write(b"")
        assert self._file is not None
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._part.replace(self._path)
            _sync_directory(self._path.parent)
        except OSError as err:
            raise StorageFailed(f"cannot write {self._path}: {err.strerror}") from err

    def drop(self) -> None:
        """Remove what was written and not kept."""
        if self._file is not None:
            self._file.close()
            self._part.unlink(missing_ok=True)


def _sync_directory(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
