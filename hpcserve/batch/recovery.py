"""What a ledger proves after whatever happened, and cutting off what it does not prove.

A crash leaves a torn end of the ledger, and results that no record speaks of: both are cut off, and those requests are
done again. Results that were changed by somebody else are not touched; the run is refused.
"""

from __future__ import annotations

import os
from array import array
from dataclasses import dataclass, field
from typing import BinaryIO

import xxhash

from hpcserve.batch.fingerprint import Fingerprint, first_difference
from hpcserve.batch.ledger import VERSION, Again, Done, Header, LineHashes, from_line, hashes_of, to_line
from hpcserve.batch.paths import Paths
from hpcserve.errors import ConfigError

_AGAIN = b'{"type":"again",'
_FRESH = "--fresh starts over and overwrites the results"


@dataclass
class Recovered:
    """What is finished, and how far each file is proven."""

    header: Header
    hashes: array[int]
    is_done: bytearray  # by line number, 1 where it is
    num_done: int = 0
    num_failed: int = 0
    ledger_end: int = 0
    is_short: bool = False  # whether results are missing that the ledger speaks of
    ends: dict[bool, int] = field(default_factory=lambda: {False: 0, True: 0})  # of the output and of the errors file


def recover(paths: Paths) -> Recovered | None:
    """Return what the ledger proves; None where there is none, or not even all of a header.

    Raises `ConfigError` where results are not what the ledger says they were. Changes nothing.
    """
    again_at = _last_again(paths)
    with paths.ledger.open("rb", buffering=2**20) as file:
        found = _read_header(file, paths)
        if found is None:
            return None
        with _Proofs(paths) as proofs:
            while record := from_line(file.readline()):
                if isinstance(record, Again) or (file.tell() <= again_at and getattr(record, "failed", False)):
                    found.ledger_end = file.tell()
                    continue
                if not isinstance(record, Done):
                    break
                if not proofs.hold(record, found.ends[record.failed]):
                    found.is_short = True
                    break
                if found.is_done[record.line]:
                    raise ConfigError(f"{paths.ledger} has line {record.line} twice; {_FRESH}")
                found.is_done[record.line] = 1
                found.num_done += 1
                found.num_failed += record.failed
                found.ends[record.failed] += record.size
                found.ledger_end = file.tell()
    return found


def cut(paths: Paths, found: Recovered) -> int:
    """Cut off what is not proven, and return how many bytes of results that were."""
    num_cut = 0
    ends = {paths.output: found.ends[False], paths.errors: found.ends[True], paths.ledger: found.ledger_end}
    for path, end in ends.items():
        if path.exists():
            num_cut += path.stat().st_size - end if path != paths.ledger else 0
            os.truncate(path, end)
    return num_cut


def forget_failures(paths: Paths, found: Recovered) -> None:
    """Have what failed count as not finished: in the ledger first, then in the errors file, which is emptied."""
    cut(paths, found)
    with paths.ledger.open("r+b") as file:
        file.seek(0, os.SEEK_END)
        file.write(to_line(Again(num_failed=found.num_failed)))
        file.flush()
        os.fsync(file.fileno())
    os.truncate(paths.errors, 0)


def check_same_input(found: Recovered, settings: dict[str, object], now: Fingerprint, noun: str) -> None:
    """Raise `ConfigError` that says what is different now, unless the ledger is of this input and these settings."""
    before = found.header
    for name in [*before.settings, *settings]:
        old, new = before.settings.get(name), settings.get(name)
        if old != new:
            raise ConfigError(f"the results so far were made with {name} = {old!r}, not {new!r}; {_FRESH}")
    if before.digest == now.hexdigest():
        return
    number = first_difference(found.hashes, now.hashes)
    where = f"{noun} {number} is the first that differs" if number else "a line differs"
    counts = f" ({before.num_lines} {noun}s then, {now.num_lines} now)" if before.num_lines != now.num_lines else ""
    raise ConfigError(f"the input is not the one that the results so far are of: {where}{counts}; {_FRESH}")


def _last_again(paths: Paths) -> int:
    """Return where in the ledger the last record is that what failed is tried again; 0 where there is none."""
    found = position = 0
    with paths.ledger.open("rb", buffering=2**20) as file:
        for line in file:
            if line[17:].startswith(_AGAIN) and from_line(line) is not None:
                found = position
            position += len(line)
    return found


class _Proofs:
    """Reads both files of results once, side by side with the ledger."""

    def __init__(self, paths: Paths) -> None:
        self._paths = {False: paths.output, True: paths.errors}
        self._files: dict[bool, BinaryIO] = {}

    def __enter__(self) -> _Proofs:
        for failed, path in self._paths.items():
            if path.exists():
                self._files[failed] = path.open("rb", buffering=2**20)
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def hold(self, record: Done, end: int) -> bool:
        """Return whether the bytes are there, behind those before; raises `ConfigError` if they are others."""
        file = self._files.get(record.failed)
        data = file.read(record.size) if file is not None and record.at == end else b""
        if len(data) < record.size:
            return False  # a file system that lost what it had promised to keep
        if xxhash.xxh3_64_intdigest(data) != record.sum:
            path = self._paths[record.failed]
            raise ConfigError(f"{path} was changed at byte {record.at} since it was written; put it back, or {_FRESH}")
        return True


def _read_header(file: BinaryIO, paths: Paths) -> Recovered | None:
    header = from_line(file.readline())
    if not isinstance(header, Header):
        return None
    if header.version != VERSION:
        raise ConfigError(f"{paths.ledger} is of another version of hpcserve; {_FRESH}")
    if header.output != paths.output.name:
        raise ConfigError(f"{paths.ledger} is of {header.output}, not of {paths.output.name}; name another output")
    hashes = array("I")
    while len(hashes) < header.num_lines:
        record = from_line(file.readline())
        if not isinstance(record, LineHashes) or record.first != len(hashes) + 1:
            return None
        hashes.extend(hashes_of(record))
    return Recovered(header, hashes, bytearray(header.num_lines + 1), ledger_end=file.tell())
