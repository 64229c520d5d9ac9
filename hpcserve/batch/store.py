"""Writes results in groups: first their bytes, then, when these are on disk, their records. Only then they count."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import xxhash

from hpcserve.batch.fingerprint import Fingerprint
from hpcserve.batch.ledger import Done, Header, header_lines, to_line
from hpcserve.batch.paths import Paths
from hpcserve.batch.recovery import Recovered, cut
from hpcserve.errors import HpcserveError


class Result(NamedTuple):
    """What became of one request."""

    line: int
    custom_id: str
    text: bytes  # line of the output or of the errors file, with its end
    failed: bool
    status: int | None
    attempts: int
    reasons: tuple[str, ...]


class Store:
    """The output, the errors file and the ledger, for appending. Made under `Paths.locked()`; one thread at a time."""

    def __init__(self, paths: Paths, ends: dict[bool, int]) -> None:
        self._ledger = _Appended(paths.ledger)
        self._files = {False: _Appended(paths.output), True: _Appended(paths.errors)}
        self._ends = dict(ends)
        self._files[False].make()  # an output of nothing is an empty file
        _sync_directory(paths.output.parent)

    @classmethod
    def start(cls, paths: Paths, header: Header, fingerprint: Fingerprint) -> Self:
        """Begin anew, over whatever was there."""
        with paths.ledger.open("r+b") as file:
            file.truncate(0)  # first: results without a ledger are refused, a ledger with other results would be wrong
            os.fsync(file.fileno())
            paths.output.unlink(missing_ok=True)
            paths.errors.unlink(missing_ok=True)
            file.writelines(header_lines(header, fingerprint))
            file.flush()
            os.fsync(file.fileno())
        return cls(paths, {False: 0, True: 0})

    @classmethod
    def go_on(cls, paths: Paths, found: Recovered) -> Self:
        """Go on behind what is proven."""
        cut(paths, found)
        return cls(paths, found.ends)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        for file in (self._ledger, *self._files.values()):
            file.close()

    def write(self, results: Sequence[Result]) -> None:
        """Put results and then their records on disk. Raises `HpcserveError` where that fails; then write no more."""
        records = []
        texts: dict[bool, list[bytes]] = {False: [], True: []}
        for result in results:
            records.append(to_line(self._record(result)))
            texts[result.failed].append(result.text)
        for failed, some in texts.items():
            if some:
                self._files[failed].append(b"".join(some))
        self._ledger.append(b"".join(records))

    def _record(self, result: Result) -> Done:
        at = self._ends[result.failed]
        self._ends[result.failed] += len(result.text)
        return Done(
            line=result.line,
            custom_id=result.custom_id,
            failed=result.failed,
            at=at,
            size=len(result.text),
            sum=xxhash.xxh3_64_intdigest(result.text),
            status=result.status,
            attempts=result.attempts,
            reasons=result.reasons,
        )


class _Appended:
    """A file that is opened when there is something to append, and is on disk after each time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    def make(self) -> int:
        if self._file is None:
            try:
                self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            except OSError as err:
                raise HpcserveError(f"cannot write {self._path}: {err.strerror}") from err
        return self._file

    def append(self, data: bytes) -> None:
        file = self.make()
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(file, rest) :]
            os.fsync(file)
        except OSError as err:
            raise HpcserveError(f"cannot write {self._path}: {err.strerror}; what was written before is kept") from err

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _sync_directory(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
