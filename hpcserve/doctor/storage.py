"""Looks at the file systems that a deployment uses: can they be read, written, locked; how much is free; what kind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypedDict

from hpcserve.errors import DeploymentError
from hpcserve.file_lock import locked

_WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")
LOCAL_KINDS = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "tmpfs", "ramfs", "overlay", "zfs", "f2fs"})
"""File systems that other hosts do not see, unless this one gives them out."""


class Scratch(TypedDict):
    """Fields of a `HostReport`."""

    scratch: str
    scratch_error: str
    scratch_free: int


class State(TypedDict):
    """Fields of a `HostReport`."""

    state_error: str
    state_free: int
    state_kind: str
    lock_error: str


class Model(TypedDict):
    """Fields of a `HostReport`."""

    model_error: str
    model_bytes: int
    model_kind: str


def look_at_scratch(directory: str) -> Scratch:
    """Write and remove a small file there."""
    path = Path(directory)
    error = _write_error(path)
    return Scratch(scratch=directory, scratch_error=error, scratch_free=0 if error else _free_bytes(path))


def look_at_state(root: Path) -> State:
    """Write, lock and remove a small file there; the directory is made where its parent allows it."""
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as err:
        return State(state_error=err.strerror or str(err), state_free=0, state_kind=kind_of(root), lock_error="")
    error = _write_error(root)
    return State(
        state_error=error,
        state_free=0 if error else _free_bytes(root),
        state_kind=kind_of(root),
        lock_error="" if error else _lock_error(root),
    )


def look_at_model(path: Path | None) -> Model:
    """Read the start of the model's configuration and of its largest file."""
    if path is None:
        return Model(model_error="", model_bytes=0, model_kind="")
    error, num_bytes = "", 0
    try:
        files = [each for each in path.iterdir() if each.is_file()]
        weights = [each for each in files if each.suffix in _WEIGHTS]
        num_bytes = sum(each.stat().st_size for each in weights)
        missing = [name for name in ("config.json", "tokenizer.json") if not (path / name).is_file()]
        error = f"no {' and no '.join(missing)} in it" if missing else ""
        for each in ([path / "config.json"] if not missing else []) + sorted(weights):
            with each.open("rb") as file:
                file.read(4096)
    except OSError as err:
        error = f"{err.strerror or err}: {err.filename or path}"
    return Model(model_error=error, model_bytes=num_bytes, model_kind=kind_of(path))


def kind_of(path: Path, mounts: str = "/proc/self/mounts") -> str:
    """Return the kind of file system that holds a path, such as "nfs4"; empty where that cannot be told."""
    real = os.path.realpath(path)
    try:
        lines = Path(mounts).read_text().splitlines()
    except OSError:
        return ""
    best, kind = "", ""
    for line in lines:
        _, where, its_kind, *_ = line.split(" ")
        where = where.encode().decode("unicode_escape")  # spaces are \040 there (proc(5))
        is_above = real == where or real.startswith(where.rstrip("/") + "/")
        if is_above and len(where) >= len(best):
            best, kind = where, its_kind
    return kind


def _write_error(directory: Path) -> str:
    probe = directory / f".hpcserve-doctor-{os.getpid()}"
    try:
        with probe.open("wb") as file:
            file.write(b"0" * 65536)
            file.flush()
            os.fsync(file.fileno())
    except OSError as err:
        return err.strerror or str(err)
    finally:
        probe.unlink(missing_ok=True) if directory.is_dir() else None
    return ""


def _lock_error(directory: Path) -> str:
    probe = directory / f".hpcserve-doctor-{os.getpid()}.lock"
    try:
        with locked(probe):
            return ""
    except (DeploymentError, OSError) as err:
        return str(err)
    finally:
        probe.unlink(missing_ok=True)


def _free_bytes(directory: Path) -> int:
    room = os.statvfs(directory)
    return room.f_bavail * room.f_frsize
