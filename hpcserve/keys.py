"""The API keys of a deployment's tenants: one file in its state directory. Lets nobody in: that is the frontend's.

Only SHA-256 digests are stored. A slow, salted password hash would add nothing: a key is 256 random bits, which nobody
finds by trying, and it would cost every request.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from hpcserve.errors import ConfigError, DeploymentError, did_you_mean
from hpcserve.file_lock import locked
from hpcserve.state import StateDir

OWNER = "default"
"""The tenant of the deployment's own key (`StateDir.key_file`), which is not in the file of keys."""

TENANT_HEADER = "x-hpcserve-tenant"
"""Names the tenant that a request with the deployment's own key is sent for. With any other key it means nothing."""

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}\Z"

Limit = Annotated[int, msgspec.Meta(ge=1)]
Models = Annotated[tuple[Annotated[str, msgspec.Meta(min_length=1)], ...], msgspec.Meta(min_length=1)]
Stamp = tuple[int, int, int]
"""Inode, time of change in ns, and size of the file: differ after every replacement."""


class Limits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a tenant may use. None: as much as there is."""

    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None  # of prompts and answers
    max_concurrent: Limit | None = None  # HTTP requests under way


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One key. A field that this version does not know may be a restriction, so it is an error."""

    name: Annotated[str, msgspec.Meta(pattern=_NAME)]  # the tenant
    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]  # of the key
    created: float  # Unix time
    expires: float | None = None  # Unix time
    priority: int = 0  # class: the tenant's requests run at this or later; lower runs first
    limits: Limits = Limits()
    models: Models | None = None  # by their names in the API; None: all

    def is_expired(self, now: float) -> bool:
        """Whether it opens nothing any more at the Unix time `now`."""
        return self.expires is not None and now >= self.expires


@dataclass(frozen=True)
class Snapshot:
    """The file as it was at one moment. Without a file there are no keys, and no stamp."""

    stamp: Stamp | None
    records: Sequence[KeyRecord]


class KeyFile:
    """Keys by tenant, 0600 and replaced in one step: a reader sees all of a change or none of it.

    Changes are made under a lock of their own: the deployment's is held by the head for as long as it lives.
    """

    def __init__(self, state: StateDir) -> None:
        self._state = state
        self.path = state.path / "keys.json"

    def read(self) -> Sequence[KeyRecord]:
        """Return all keys, expired ones too, in the order they were added. Raises `DeploymentError`."""
        found = self.read_if_changed(None)
        return found.records if found else ()

    def read_if_changed(self, since: Stamp | None) -> Snapshot | None:
        """Return the file, or None if it is as it was at `since`, where None is no file. Raises `DeploymentError`."""
        try:
            # Opened, not only looked up: on NFS that is what asks the server and not a cache.
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
                return Snapshot(stamp, _decode(file.read(), self.path)) if stamp != since else None
        except FileNotFoundError:
            return Snapshot(None, ()) if since is not None else None
        except OSError as err:
            raise DeploymentError(f"{self.path} cannot be read: {err.strerror}") from err

    def add(
        self,
        name: str,
        *,
        now: float,
        expires: float | None = None,
        priority: int = 0,
        limits: Limits | None = None,
        models: Sequence[str] = (),
    ) -> str:
        """Add a tenant and return its key, which is stored nowhere. `now` and `expires` are Unix times.

        Without `models` the key is good for all. Raises `ConfigError` for a name that cannot be one, or that a tenant
        already has, and for a model without a name.
        """
        _check_name(name)
        if not all(models):
            raise ConfigError("a model needs a name; without --model a key is good for all")
        key = f"sk-{secrets.token_urlsafe(32)}"
        record = KeyRecord(
            name=name,
            sha256=digest(key).hex(),
            created=now,
            expires=expires,
            priority=priority,
            limits=limits or Limits(),
            models=tuple(dict.fromkeys(models)) or None,
        )
        with self._locked():
            records = self.read()
            if any(each.name == name for each in records):
                raise ConfigError(
                    f"there is a key called {name!r} already; choose another name, or revoke that one first "
                    f"(hpcserve keys revoke {name})"
                )
            self._write([*records, record])
        return key

    def revoke(self, name: str) -> None:
        """Remove a tenant's key. Raises `ConfigError` where there is none."""
        if name == OWNER:
            raise ConfigError(
                f"{OWNER!r} is the deployment's own key; for a new one: hpcserve down, remove {self._state.key_file}, "
                "hpcserve up"
            )
        with self._locked():
            records = self.read()
            names = [each.name for each in records]
            if name not in names:
                raise ConfigError(f"no key called {name!r}{did_you_mean(name, names)}")
            self._write([each for each in records if each.name != name])

    def _write(self, records: Sequence[KeyRecord]) -> None:
        self._state.write_private(self.path, msgspec.json.format(msgspec.json.encode(records)))

    def _locked(self) -> AbstractContextManager[None]:
        return locked(self._state.path / "keys.lock")


def digest(key: str) -> bytes:
    """Return what is stored of a key."""
    return hashlib.sha256(key.encode("utf-8", errors="surrogateescape")).digest()


def _decode(data: bytes, path: Path) -> Sequence[KeyRecord]:
    try:
        records = msgspec.json.decode(data, type=list[KeyRecord])
    except msgspec.MsgspecError as err:
        raise DeploymentError(f"{path} is damaged or of a newer version ({err}); mend it, or remove it") from err
    twice = [name for name, count in Counter(each.name for each in records).items() if count > 1 or name == OWNER]
    if twice:
        raise DeploymentError(f"{path} is damaged: {twice[0]!r} is there twice; mend it, or remove it")
    return records


def _check_name(name: str) -> None:
    if name == OWNER:
        raise ConfigError(f"{OWNER!r} is the deployment's own key (`hpcserve key` prints it); choose another name")
    if not re.fullmatch(_NAME, name):
        raise ConfigError(
            f"{name[:80]!r} cannot be the name of a key: at most 64 letters, digits and ._@-, "
            "beginning with a letter or digit"
        )
