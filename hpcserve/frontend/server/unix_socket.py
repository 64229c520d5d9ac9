"""The file of a Unix socket that only this user can connect to: made, checked and removed. It accepts nothing."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

from hpcserve.errors import ConfigError, DeploymentError

_KEY = "frontend.unix_socket"
_MAX_PATH_BYTES = 107  # sun_path is 108 with its final zero: unix(7)
_CONNECT_TIMEOUT_S = 2.0


def check_unix_socket(path: Path) -> None:
    """Raise `ConfigError` where no socket can be made at `path`, `DeploymentError` where somebody listens there.

    Its directory is this user's alone, or can be made. Changes nothing.
    """
    if len(os.fsencode(path)) > _MAX_PATH_BYTES:
        raise ConfigError(f"{_KEY} = {path} is over the {_MAX_PATH_BYTES} bytes that Unix sockets allow", param=_KEY)
    _check_directory(path.parent)
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as err:
        raise ConfigError(f"{_KEY} = {path} cannot be looked at: {err.strerror}", param=_KEY) from err
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{_KEY} = {path} is there already and is no socket; choose another path", param=_KEY)
    if _somebody_listens(path):
        raise DeploymentError(f"somebody listens on {path} already; choose another with --unix-socket")


def make_room(path: Path) -> None:
    """Make the directory of a socket, 0700, and remove a socket that nobody listens on. Raises as the check does."""
    check_unix_socket(path)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
    except OSError as err:
        raise ConfigError(f"{_KEY} = {path} cannot be made: {err.strerror}", param=_KEY) from err


def _check_directory(directory: Path) -> None:
    try:
        status = directory.stat()
    except FileNotFoundError:
        return
    except OSError as err:
        raise ConfigError(f"{_KEY}: {directory} cannot be looked at: {err.strerror}", param=_KEY) from err
    if not stat.S_ISDIR(status.st_mode):
        raise ConfigError(f"{_KEY}: {directory} is no directory", param=_KEY)
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise ConfigError(
            f"{_KEY}: others may enter {directory}; name a socket in a directory that is yours alone (chmod 700), "
            "or in one that does not exist yet",
            param=_KEY,
        )


def _somebody_listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_CONNECT_TIMEOUT_S)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True  # its queue is full, or it is another's: not ours to remove
    return True
