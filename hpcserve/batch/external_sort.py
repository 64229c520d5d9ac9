"""Sorts more records than fit into memory: sorted runs in files without a name, merged as they are read.

The files are gone with the process, however it ends. Keys are compared byte by byte, which for big-endian numbers is
the order of the numbers, and for texts puts those next to each other that begin alike.
"""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from struct import Struct
from typing import IO

from hpcserve.errors import HpcserveError

Record = tuple[bytes, bytes]  # key, value

RUN_BYTES = 48 * 2**20  # of keys and values in memory; about twice that with what Python keeps beside them
_MAX_RUNS = 64  # merged at once
_BUFFER_BYTES = 2**18
_RECORD_BYTES = 120  # of Python's own, for two bytes objects and their pair
_head = Struct(">II")


def sort_records(records: Iterable[Record], directory: Path, run_bytes: int = RUN_BYTES) -> Iterator[Record]:
    """Yield the records by their keys; keys must differ. Files lie in `directory`, and only if memory does not do.

    Raises `HpcserveError` where the disk is full.
    """
    with ExitStack() as stack:
        runs: list[IO[bytes]] = []
        some: list[Record] = []
        num_bytes = 0
        for record in records:
            some.append(record)
            num_bytes += len(record[0]) + len(record[1]) + _RECORD_BYTES
            if num_bytes > run_bytes:
                some.sort()
                runs.append(_write(some, directory, stack))
                some, num_bytes = [], 0
                if len(runs) == _MAX_RUNS:
                    merged = _write(_merged(runs), directory, stack)
                    for run in runs:
                        run.close()
                    runs = [merged]
        some.sort()
        yield from heapq.merge(*(_read(run) for run in runs), some)


def _merged(runs: list[IO[bytes]]) -> Iterator[Record]:
    return heapq.merge(*(_read(run) for run in runs))


def _write(records: Iterable[Record], directory: Path, stack: ExitStack) -> IO[bytes]:
    try:
        file = stack.enter_context(tempfile.TemporaryFile(dir=directory, buffering=_BUFFER_BYTES))  # noqa: SIM115  it is
        for key, value in records:
            file.write(_head.pack(len(key), len(value)))
            file.write(key)
            file.write(value)
        file.flush()
        file.seek(0)
    except OSError as err:
        raise HpcserveError(
            f"cannot sort the input in {directory}: {err.strerror}; --order input does without"
        ) from err
    return file


def _read(file: IO[bytes]) -> Iterator[Record]:
    while head := file.read(_head.size):
        key_size, size = _head.unpack(head)
        key = file.read(key_size)
        yield key, file.read(size)
