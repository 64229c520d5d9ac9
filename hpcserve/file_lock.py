"""A lock on a small file, for as long as its reader and writer needs to change another. Not for what is held long."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpcserve.errors import DeploymentError

_TIMEOUT_S = 10.0
_RETRY_S = 0.02


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, made 0600 where there is none; blocks while another process holds it.

    Raises `DeploymentError` after ten seconds, and where the file system has no locks.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _lock(file, path)
        yield
    finally:
        os.close(file)


def _lock(file: int, path: Path) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except (BlockingIOError, PermissionError) as err:
            if time.monotonic() > deadline:
                raise DeploymentError(f"another process has held {path} for too long") from err
        except OSError as err:
            raise DeploymentError(
                f"{path} is on a file system without locks ({err.strerror}); set HPCSERVE_STATE_DIR to one with them"
            ) from err
        time.sleep(_RETRY_S)
