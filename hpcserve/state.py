"""The state directory: what a deployment leaves on disk so that any machine that sees it can find, use and end it.

One directory a deployment, 0700; every file 0600 and replaced atomically, because other hosts read while one writes.
It holds records only. Who is alive is decided by asking (`Proc.is_alive`, Slurm), never by a file being there.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TypeVar

import msgspec

from hpcserve.config.models import Config
from hpcserve.errors import DeploymentError
from hpcserve.records import FrontendRecord, HeadRecord, JobRecord, Proc

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class StateDir:
    """Paths and records of one deployment."""

    path: Path

    @classmethod
    def of(cls, name: str) -> StateDir:
        """Return the directory of the deployment called `name`, which may not exist."""
        return cls(state_root() / name)

    @classmethod
    def all(cls) -> list[StateDir]:
        """Return every deployment that left a directory, by name."""
        root = state_root()
        found = (path for path in root.iterdir() if path.is_dir()) if root.is_dir() else iter(())
        return [state for state in map(cls, sorted(found)) if state.exists()]

    @property
    def name(self) -> str:
        """Name of the deployment."""
        return self.path.name

    @property
    def logs(self) -> Path:
        """Directory of `head.log`, `frontend.log` (further ones have a number) and one file a worker."""
        return self.path / "logs"

    @property
    def key_file(self) -> Path:
        """File with the bearer key of the HTTP API."""
        return self.path / "api-key"

    @property
    def header_file(self) -> Path:
        """File with the key as an HTTP header, for `curl -H @FILE`."""
        return self.path / "api-key.header"

    @property
    def salt_secret_file(self) -> Path:
        """File with the secret that the cache salts of tenants are derived from."""
        return self.path / "salt-secret"

    @property
    def tls_cert(self) -> Path:
        """The deployment's certificate: its own authority, shared by all its processes."""
        return self.path / "tls-cert.pem"

    @property
    def tls_key(self) -> Path:
        """Private key of `tls_cert`."""
        return self.path / "tls-key.pem"

    def exists(self) -> bool:
        """Whether a deployment was ever started here and not yet removed."""
        return (self.path / "config.json").is_file()

    def began_at(self) -> float | None:
        """Return when the deployment was started, by its first head: it wrote the configuration. Unix time."""
        try:
            return (self.path / "config.json").stat().st_mtime
        except FileNotFoundError:
            return None

    def create(self) -> None:
        """Make the directory, private to this user. Raises `DeploymentError` if it cannot be, or is somebody else's."""
        self._make(self.path)
        self._make(self.logs)
        if not self.key_file.exists():
            self.write_private(self.key_file, f"sk-{secrets.token_urlsafe(32)}\n".encode())
        self.write_private(self.header_file, f"Authorization: Bearer {self.read_key()}\n".encode())
        if not self.salt_secret_file.exists():
            self.write_private(self.salt_secret_file, f"{secrets.token_hex(32)}\n".encode())

    def remove(self) -> None:
        """Delete the directory and all in it."""
        shutil.rmtree(self.path, ignore_errors=True)

    def write_private(self, path: Path, data: bytes) -> None:
        """Replace `path` by `data` in one step, readable by this user only."""
        with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:  # made 0600
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(file.name).replace(path)

    def read_key(self) -> str:
        """Return the bearer key; raises `DeploymentError` before the first `up`."""
        return self._read_secret(self.key_file)

    def read_salt_secret(self) -> bytes:
        """Return what cache salts are derived from; raises `DeploymentError` before the first `up`."""
        return self._read_secret(self.salt_secret_file).encode()

    def read_config(self) -> Config:
        """Return the configuration that the deployment was started with."""
        try:
            return Config.model_validate_json((self.path / "config.json").read_bytes())
        except FileNotFoundError as err:
            raise DeploymentError(f"no deployment called {self.name!r}: nothing in {self.path}") from err
        except ValueError as err:
            raise DeploymentError(
                f"{self.path / 'config.json'} is not a configuration of this version; "
                f"end the deployment with the version that started it, or remove {self.path}"
            ) from err

    def write_config(self, config: Config) -> None:
        """Record the configuration."""
        self.write_private(self.path / "config.json", config.model_dump_json(indent=2).encode())

    def read_head(self) -> HeadRecord | None:
        """Return how to reach the head, or None where none was started or it ended in good order."""
        return self._read("head.json", HeadRecord)

    def write_head(self, head: HeadRecord) -> None:
        """Record how to reach the head."""
        self._write("head.json", head)

    def clear_head(self) -> None:
        """Record that no head runs."""
        (self.path / "head.json").unlink(missing_ok=True)
        (self.path / "last-head.json").unlink(missing_ok=True)

    def has_lost_head(self) -> bool:
        """Whether a head is named, or was until it was found dead, that did not end in good order."""
        return any((self.path / name).is_file() for name in ("head.json", "last-head.json"))

    def retire_head(self) -> HeadRecord | None:
        """Record that the head that was named has died, and return where the last one of these was reached."""
        with suppress(FileNotFoundError):
            (self.path / "head.json").replace(self.path / "last-head.json")
        return self._read("last-head.json", HeadRecord)

    def read_spawned(self) -> Proc | None:
        """Return the head's process as `up` spawned it, which may not have come far enough to be reached."""
        return self._read("spawned.json", Proc)

    def write_spawned(self, proc: Proc) -> None:
        """Record the head's process."""
        self._write("spawned.json", proc)

    def read_head_job(self) -> str | None:
        """Return the Slurm job that the head was given, if it was given one."""
        return self._read("head-job.json", str)

    def write_head_job(self, job_id: str | None) -> None:
        """Record the head's own Slurm job; None: it has none."""
        if job_id is None:
            (self.path / "head-job.json").unlink(missing_ok=True)
        else:
            self._write("head-job.json", job_id)

    def clear_spawned(self) -> None:
        """Record that no process was spawned as the head here."""
        (self.path / "spawned.json").unlink(missing_ok=True)

    def read_frontends(self) -> list[FrontendRecord]:
        """Return the frontends, as far as they were started."""
        return self._read("frontends.json", list[FrontendRecord]) or []

    def write_frontends(self, frontends: list[FrontendRecord]) -> None:
        """Record the frontends."""
        self._write("frontends.json", frontends)

    def read_jobs(self) -> list[JobRecord]:
        """Return every job or process that may still hold a worker."""
        path = self.path / "jobs.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=list[JobRecord])
        except FileNotFoundError:
            return []
        except msgspec.MsgspecError as err:
            raise DeploymentError(f"{path} is damaged ({err}); cancel its jobs by hand, then remove it") from err

    def write_jobs(self, jobs: list[JobRecord]) -> None:
        """Record every job or process that may hold a worker. Written before a job can be lost sight of."""
        self.write_private(self.path / "jobs.json", msgspec.json.format(msgspec.json.encode(jobs)))

    def read_failure(self) -> str:
        """Return why the last head ended badly, or an empty string."""
        path = self.path / "failure.txt"
        return path.read_text().strip() if path.is_file() else ""

    def write_failure(self, reason: str) -> None:
        """Record why this head ends badly; an empty reason clears it."""
        self.write_private(self.path / "failure.txt", reason.encode())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the deployment for one head. Raises `DeploymentError` while another process holds it.

        The lock ends with the process that holds it, however that ends.
        """
        with _locked(self.path / "lock", f"another head already runs deployment {self.name!r} in {self.path}"):
            yield

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Hold the deployment for one `up`, from looking at what is left to spawning a head.

        Raises `DeploymentError` also where the disk is full.
        """
        self._make(self.path)
        lock = self.path / "up.lock"
        with _locked(lock, f"deployment {self.name!r} is being started by another hpcserve up"):
            try:
                yield
            except OSError as err:
                raise DeploymentError(
                    f"cannot start in the state directory {self.path}: {err.strerror or err}"
                ) from err
            finally:
                if not self.exists():  # refused, and never started before
                    lock.unlink(missing_ok=True)
                    with suppress(OSError):
                        self.path.rmdir()

    def _make(self, directory: Path) -> None:
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.chmod(0o700)
        except OSError as err:
            raise DeploymentError(
                f"cannot write the state directory {self.path}: {err.strerror}; set HPCSERVE_STATE_DIR"
            ) from err

    def _read_secret(self, path: Path) -> str:
        try:
            return path.read_text().strip()
        except OSError as err:
            raise DeploymentError(f"no key for deployment {self.name!r}: {path} cannot be read") from err

    def _read(self, name: str, record: type[_Value]) -> _Value | None:
        try:
            return msgspec.json.decode((self.path / name).read_bytes(), type=record)
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError as err:
            raise DeploymentError(f"{self.path / name} is damaged ({err}); remove it") from err

    def _write(self, name: str, record: object) -> None:
        self.write_private(self.path / name, msgspec.json.format(msgspec.json.encode(record)))


def state_root() -> Path:
    """Return the directory of all deployments: `$HPCSERVE_STATE_DIR`, else `~/.local/state/hpcserve`.

    It has to be on a file system that the compute nodes see.
    """
    configured = os.environ.get("HPCSERVE_STATE_DIR")
    return Path(configured) if configured else Path.home() / ".local" / "state" / "hpcserve"


@contextmanager
def _locked(path: Path, refusal: str) -> Iterator[None]:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _lock(file, path.parent, refusal)
        yield
    finally:
        os.close(file)


def _lock(file: int, directory: Path, refusal: str) -> None:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as err:
        raise DeploymentError(refusal) from err
    except OSError as err:
        raise DeploymentError(
            f"{directory} is on a file system without locks ({err.strerror}); set HPCSERVE_STATE_DIR to one with them"
        ) from err
