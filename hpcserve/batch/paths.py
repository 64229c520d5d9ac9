"""The files of one run, found by the name of its output, and the lock that lets only one run have them."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hpcserve.errors import ConfigError

# struct flock (fcntl(2)). Of the open file description: lockf's lock would end when the ledger is read and closed.
_WHOLE_FILE = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


@dataclass(frozen=True)
class Paths:
    """`answers.jsonl`, and beside it `answers.errors.jsonl` and `answers.ledger`."""

    output: Path

    @property
    def errors(self) -> Path:
        """Where requests go that failed; there only if some did."""
        return self.output.with_name(f"{self._stem}.errors.jsonl")

    @property
    def ledger(self) -> Path:
        """What is done; a run goes on where it says."""
        return self.output.with_name(f"{self._stem}.ledger")

    @property
    def _stem(self) -> str:
        return self.output.name.removesuffix(".jsonl")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the ledger, made 0600 where there is none. Raises `ConfigError` while another run holds it."""
        if self.output.is_dir():
            raise ConfigError(f"{self.output} is a directory; name a file with -o")
        try:
            file = os.open(self.ledger, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as err:
            raise ConfigError(f"cannot write {self.ledger}: {err.strerror}") from err
        try:
            self._lock(file)
            yield
        finally:
            os.close(file)

    def _lock(self, file: int) -> None:
        try:
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, _WHOLE_FILE)
        except (BlockingIOError, PermissionError) as err:
            raise ConfigError(f"another run is writing {self.output}") from err
        except OSError as err:
            raise ConfigError(f"{self.ledger} is on a file system without locks ({err.strerror})") from err
