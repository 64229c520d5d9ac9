"""The directory of a deployment's files and batches, put together."""

from __future__ import annotations

import shutil
from pathlib import Path

from hpcserve.config.models import Config
from hpcserve.errors import StorageFailed
from hpcserve.jobs.batches import Batches
from hpcserve.jobs.blobs import Blobs
from hpcserve.jobs.database import Database
from hpcserve.jobs.files import Files
from hpcserve.state import StateDir


class JobStore:
    """Everything under one directory, which is made 0700 where there is none. Blocks."""

    def __init__(self, directory: Path) -> None:
        """Raises `StorageFailed` where it cannot be written."""
        self.directory = directory
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.chmod(0o700)
            blobs = Blobs(directory / "files")
            self._work = directory / "running"
            self._work.mkdir(mode=0o700, exist_ok=True)
        except OSError as err:
            raise StorageFailed(f"cannot write {directory}: {err.strerror}; set batches.directory") from err
        database = Database(directory / "jobs.sqlite")
        self.files = Files(database, blobs)
        self.batches = Batches(database)

    def working_directory(self, batch_id: str) -> Path:
        """Return where results of a batch are while it runs; made 0700."""
        path = self._work / batch_id
        path.mkdir(mode=0o700, exist_ok=True)
        return path

    def sweep(self, now: float) -> None:
        """Delete files that have expired, and whatever crashes left. Raises `StorageFailed`."""
        self.files.sweep(now)
        unfinished = {each.id for each in self.batches.unfinished()}
        for path in self._work.iterdir():
            if path.name not in unfinished:
                shutil.rmtree(path, ignore_errors=True)


def jobs_directory(config: Config, state: StateDir) -> Path:
    """Return where the files and batches of a deployment are: as configured, or beside its records."""
    configured = config.batches.directory
    return configured.expanduser() / state.name if configured else state.path / "batches"
