"""The directory that is a worker's own on its node, and those that killed workers have left there."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hpcserve.config.models import Config
from hpcserve.errors import ConfigError

log = logging.getLogger(__name__)

_PREFIX = "hpcserve-"
_OWNER = "owner"  # holds the host's name, and is locked for as long as the worker lives


@contextmanager
def scratch_directory(config: Config, name: str) -> Iterator[Path]:
    """Make a directory that only this user may enter, remove it in the end, and first those that killed workers left.

    Raises `ConfigError` as `scratch_root` does.
    """
    root = scratch_root(config)
    remove_left(Path(root or tempfile.gettempdir()))
    path = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{name}-", dir=root))
    try:
        with (path / _OWNER).open("x") as owner:
            with suppress(OSError):  # without locks there is nobody who removes it either
                fcntl.flock(owner, fcntl.LOCK_EX)
                owner.write(socket.gethostname())
                owner.flush()
            yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def remove_left(root: Path) -> None:
    """Remove this user's directories of workers that ran on this host and are no more."""
    for path in root.glob(f"{_PREFIX}*/{_OWNER}"):
        with suppress(OSError):  # of another user, removed by another worker, or locked by one that lives
            found = path.parent.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
                continue
            with path.open("r+") as owner:
                if owner.read() != socket.gethostname():
                    continue  # the file system is shared, and the lock may not be
                fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path.parent, ignore_errors=True)
            log.info("removed %s, which a killed worker had left", path.parent)


def scratch_root(config: Config) -> str | None:
    """Return where such directories are made; None stands for $TMPDIR, else /tmp. Variables are this node's.

    Raises `ConfigError` for one that is not a directory here, or names a variable that is not set here.
    """
    if config.cluster.scratch is None:
        return None
    path = os.path.expandvars(config.cluster.scratch)
    if not os.path.isdir(path):
        raise ConfigError(
            f"cluster.scratch = {config.cluster.scratch} is no directory on {socket.gethostname()} (read as {path})"
        )
    return path
