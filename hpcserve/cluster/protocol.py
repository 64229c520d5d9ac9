"""What the head asks of a cluster. `tests/cluster/test_cluster_contract.py` is the executable form of this page."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, Protocol

from hpcserve.types import EndCause, Role, WorkerId


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """One worker to launch. One job holds one worker."""

    worker: WorkerId
    pool: str
    role: Role
    args: tuple[str, ...] = ()  # put at the end of the agent's command line
    exclude: tuple[str, ...] = ()  # nodes that it must not run on; only Slurm has any to choose from


class JobState(StrEnum):
    """What the cluster says of a job; it knows nothing of the engine inside."""

    PENDING = "pending"
    RUNNING = "running"
    GONE = "gone"


@dataclass(frozen=True, kw_only=True)
class JobView:
    """One job at one moment. Times are Unix seconds."""

    job_id: str
    state: JobState
    reason: str = ""  # why it is pending, or how it ended: "COMPLETED", "FAILED: exit code 3", "TIMEOUT", ...
    host: str | None = None  # known while RUNNING
    started_at: float | None = None
    ends_at: float | None = None  # when its walltime is over


@dataclass(frozen=True, kw_only=True)
class JobEnd:
    """How one job ended, as far as the cluster tells."""

    cause: EndCause
    detail: str = ""  # in the cluster's words
    node: str | None = None
    ended_at: float | None = None  # Unix time
    num_gpus: int | None = None  # that it held; None: it does not say


class Cluster(Protocol):
    """A source of workers. All coroutines belong to one event loop on the main thread; none blocks it for long."""

    @property
    def kind(self) -> Literal["local", "slurm", "mpi"]:
        """Which implementation this is."""
        ...

    async def check(self, num_workers: int, *, num_nodes: int | None = None) -> None:
        """Refuse what cannot work before anything is spent, by a `ClusterError` of one line that says what to change.

        `num_workers` must have room at the same time on an otherwise empty cluster; `num_nodes` must exist.
        """
        ...

    def render(self, spec: WorkerSpec) -> str:
        """Return what `launch` would run: a job script, or a command line. Starts nothing."""
        ...

    async def launch(self, spec: WorkerSpec) -> str:
        """Submit one worker and return its job id. Raises `ClusterError` with the cluster's own words.

        Cancelling it loses no job: one that was submitted meanwhile is ended by `close`.
        """
        ...

    def adopt(self, job_id: str) -> None:
        """Take charge of a job that an earlier head launched."""
        ...

    async def observe(self) -> dict[str, JobView]:
        """Return every job launched or adopted here, by id; one the cluster does not know is GONE.

        Raises `ClusterError` when the cluster does not answer, which says nothing about the jobs.
        """
        ...

    async def ends(self, job_ids: Iterable[str]) -> dict[str, JobEnd]:
        """Return how these jobs ended, by id; one that has not ended, or not for good, is left out.

        The cause is UNKNOWN where the cluster does not tell. Raises `ClusterError` when it does not answer.
        """
        ...

    async def estimate_start(self, spec: WorkerSpec) -> float | None:
        """Return the Unix time at which such a job would start if it was submitted now; None: nobody knows.

        It submits nothing. Raises `ClusterError` when the cluster does not answer, or would not take such a job.
        """
        ...

    async def cancel(self, job_ids: Iterable[str], *, force: bool = False) -> None:
        """Have pending jobs removed and running agents drain (one SIGTERM, however often this is called).

        `force` ends them at once. Jobs that are already gone are ignored.
        """
        ...

    async def wait_gone(self, job_ids: Iterable[str], timeout_s: float) -> None:
        """Return when the cluster holds none of these any more; raises `ClusterError` naming those that stayed."""
        ...

    async def close(self) -> None:
        """End by force every job that was launched or adopted here and return when none is left. Safe to call twice."""
        ...
