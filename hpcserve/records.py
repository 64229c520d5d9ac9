"""What is on record of a deployment's processes and jobs. Who keeps the records is `state.py`."""

from __future__ import annotations

import socket
from pathlib import Path

import msgspec

from hpcserve.types import Role, WorkerId


class Proc(msgspec.Struct, frozen=True, kw_only=True):
    """One process, told apart from a later one that was given the same pid."""

    pid: int
    host: str
    start_time: int  # clock ticks after boot, field 22 of /proc/<pid>/stat (proc(5))

    @classmethod
    def of(cls, pid: int) -> Proc:
        """Describe a live process of this host; raises `ProcessLookupError`."""
        start_time = _start_time(pid)
        if start_time is None:
            raise ProcessLookupError(pid)
        return cls(pid=pid, host=socket.gethostname(), start_time=start_time)

    @property
    def is_local(self) -> bool:
        """Whether it runs (or ran) on this host."""
        return self.host == socket.gethostname()

    @property
    def is_alive(self) -> bool:
        """Whether it still runs. Only this host's processes can be looked up; others count as dead here."""
        return self.is_local and _start_time(self.pid) == self.start_time


class HeadRecord(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach the head."""

    proc: Proc
    scheduler: str  # Dask scheduler, tls://host:port
    address: str  # the head's own channel, tls://host:port
    dashboard: str | None = None


class FrontendRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One frontend process, which outlives its head."""

    proc: Proc
    index: int  # of the processes that `frontend.processes` wants
    port: int | None = None  # that it shares with the others; None: it listens alone


class JobRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One job or process that holds a worker."""

    worker: WorkerId
    pool: str
    role: Role
    job_id: str
    cluster: str  # "local", "slurm" or "mpi"
    index: int = 0  # of its slot in the pool
    submitted_at: float = 0.0  # Unix times; None: not yet
    started_at: float | None = None
    ready_at: float | None = None
    ends_at: float | None = None
    node: str | None = None  # the name that Slurm's commands take, or the host


def _start_time(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the command may hold spaces and brackets
    return None if fields[0] == "Z" else int(fields[19])
