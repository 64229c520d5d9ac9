"""Workers on the fixed ranks of one allocation, started by `mpirun` or `srun`; needs neither MPI nor more jobs.

A rank (`rank.py`) reports here and holds one agent at a time. Which worker goes to which rank is decided when all ranks
have reported, because the GPUs of a node are shared out among its ranks.
"""

from __future__ import annotations

import asyncio
import logging
import shlex
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from hpcserve.cluster.child import agent_command
from hpcserve.cluster.command import AGENT_MODULE, SCHEDULER, agent_options, log_file
from hpcserve.cluster.job_ends import read_ends
from hpcserve.cluster.launcher import Launch, allocation_end, read_launch
from hpcserve.cluster.protocol import JobEnd, JobState, JobView, WorkerSpec
from hpcserve.cluster.rank_protocol import Hello, Order, Rendezvous, Signal, Started, write_rendezvous
from hpcserve.cluster.ranks import RankPeer, Ranks
from hpcserve.comm.address import announce_host
from hpcserve.comm.channel import Listener
from hpcserve.comm.tls import Identity
from hpcserve.config.models import Config
from hpcserve.errors import ClusterError, HpcserveError
from hpcserve.state import StateDir

log = logging.getLogger(__name__)

_JOIN_TIMEOUT_S = 120.0  # from the first launch; a shared file system may show a new file a minute later
_START_TIMEOUT_S = 60.0
_CLOSE_TIMEOUT_S = 15.0
_NOT_HERE = (
    "cluster.kind = mpi works inside one allocation only: start this command with mpirun or srun, one rank more than "
    "workers, or use `hpcserve batch submit`"
)


@dataclass
class _Job:
    """One worker, wherever it has got to."""

    view: JobView
    spec: WorkerSpec | None = None  # None: adopted
    rank: int | None = None
    was_asked: bool = False
    starting: asyncio.Task[None] | None = field(default=None, repr=False)


class MpiCluster:
    """Knows its jobs and the ranks that reported. A job id is the worker's."""

    kind: Literal["mpi"] = "mpi"

    def __init__(
        self,
        config: Config,
        state_dir: Path,
        *,
        agent_module: str = AGENT_MODULE,
        launch: Launch | None = None,
        join_timeout_s: float = _JOIN_TIMEOUT_S,
    ) -> None:
        """`launch` is what the launcher says of this process; by default what the environment has of it."""
        self._config = config
        self._state = StateDir(state_dir)
        self._agent_module = agent_module
        self._launch = launch or read_launch()
        self._join_timeout_s = join_timeout_s
        self._join_by = 0.0
        self._jobs: dict[str, _Job] = {}
        self._ranks = Ranks(self._on_joined, self._on_ended, self._on_lost)
        self._listener: Listener | None = None
        self._changed = asyncio.Event()

    async def check(self, num_workers: int, *, num_nodes: int | None = None) -> None:
        """Refuse more workers than ranks; nodes are as the allocation has them."""
        if self._launch is None or self._launch.num_workers < 1:
            raise ClusterError(_NOT_HERE)
        if num_workers > self._launch.num_workers:
            raise ClusterError(
                f"{num_workers} workers need {num_workers + 1} ranks, as rank 0 has the driver; "
                f"{self._launch.launcher} started {self._launch.num_ranks}"
            )

    def render(self, spec: WorkerSpec) -> str:
        """Return the command line that a rank runs."""
        return shlex.join(agent_command(self._agent_module, self._args(spec)))

    async def launch(self, spec: WorkerSpec) -> str:
        """Have the next free rank start it, once all have reported. Raises `ClusterError` outside of an allocation."""
        await self._listen()
        job_id = str(spec.worker)
        self._jobs[job_id] = _Job(JobView(job_id=job_id, state=JobState.PENDING), spec)
        self._place()
        return job_id

    def adopt(self, job_id: str) -> None:
        """Take charge of a worker; it is gone, as far as this process knows, until its rank reports."""
        gone = JobView(job_id=job_id, state=JobState.GONE, reason="its rank does not report here")
        self._jobs.setdefault(job_id, _Job(gone))

    async def observe(self) -> dict[str, JobView]:
        """Return what the ranks said."""
        return {job_id: job.view for job_id, job in self._jobs.items()}

    async def ends(self, job_ids: Iterable[str]) -> dict[str, JobEnd]:
        """Say what the end of each process said."""
        return read_ends(await self.observe(), job_ids)

    async def estimate_start(self, spec: WorkerSpec) -> float | None:
        """Answer nothing: there is no queue."""

    async def cancel(self, job_ids: Iterable[str], *, force: bool = False) -> None:
        """SIGTERM to each agent, once; with `force` SIGKILL to all that it started."""
        jobs = [self._jobs[job_id] for job_id in job_ids if job_id in self._jobs]
        starting = [job.starting for job in jobs if job.starting is not None]
        if starting:
            await asyncio.wait(starting, timeout=_START_TIMEOUT_S)
        for job in jobs:
            if job.view.state is JobState.PENDING:
                self._end(job, "CANCELLED")
            elif job.view.state is JobState.RUNNING and (force or not job.was_asked):
                job.was_asked = True
                assert job.rank is not None
                self._ranks.send(job.rank, "end", Signal(job_id=job.view.job_id, how="kill" if force else "drain"))

    async def wait_gone(self, job_ids: Iterable[str], timeout_s: float) -> None:
        """Return when no rank holds any of these; raises `ClusterError` after `timeout_s`."""
        wanted, deadline = list(job_ids), time.monotonic() + timeout_s
        while waiting := [each for each in wanted if each in self._jobs and not _is_gone(self._jobs[each])]:
            self._changed.clear()
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    await self._changed.wait()
            except TimeoutError:
                raise ClusterError(f"still running after {timeout_s:g} s: {', '.join(sorted(waiting))}") from None

    async def close(self) -> None:
        """Have every rank kill its agent and leave; forget all jobs."""
        with suppress(OSError):
            write_rendezvous(self._state, Rendezvous(label=self._label, address=None))
        if self._listener is not None:
            await self._ranks.dismiss(_CLOSE_TIMEOUT_S)
            await self._listener.close()
            self._listener = None
        starting = [job.starting for job in self._jobs.values() if job.starting is not None]
        await asyncio.gather(*starting, return_exceptions=True)
        self._jobs.clear()

    @property
    def _label(self) -> str:
        return self._launch.label if self._launch else ""

    async def _listen(self) -> None:
        if self._listener is not None:
            return
        if self._launch is None:
            raise ClusterError(_NOT_HERE)
        self._listener = Listener(self._ranks.peer, Identity(self._state.tls_cert, self._state.tls_key))
        address = await self._listener.start(announce_host(self._config))
        write_rendezvous(self._state, Rendezvous(label=self._label, address=address))
        self._join_by = time.monotonic() + self._join_timeout_s
        asyncio.get_running_loop().call_later(self._join_timeout_s, self._place)

    def _place(self) -> None:
        """Give waiting jobs to free ranks; say what they wait for, or that they wait in vain."""
        if self._launch is None or self._listener is None:
            return
        missing = self._ranks.missing(self._launch.num_ranks)
        is_late = time.monotonic() >= self._join_by
        for job in self._jobs.values():
            if job.view.state is not JobState.PENDING or job.starting is not None or job.spec is None:
                continue
            rank = self._ranks.next_free() if is_late or not missing else None
            if rank is not None:
                job.rank = rank.hello.rank
                job.starting = asyncio.create_task(self._start(job, job.spec, rank), name=f"start {job.view.job_id}")
            elif missing and is_late:
                numbers = ", ".join(map(str, missing))
                late = f"rank {numbers} of {self._launch.num_ranks} did not report within {self._join_timeout_s:g} s"
                self._end(job, f"FAILED: {late}")
            else:
                waits = f"waits for rank {', '.join(map(str, missing))} to report" if missing else "waits for a rank"
                job.view = replace(job.view, reason=waits)

    async def _start(self, job: _Job, spec: WorkerSpec, rank: RankPeer) -> None:
        try:
            order = self._order(spec, rank)
            started = await rank.channel.call("start", order, Started, timeout_s=_START_TIMEOUT_S)
        except HpcserveError as err:
            self._ranks.free(rank.hello.rank)
            self._end(job, f"FAILED: rank {rank.hello.rank} on {rank.hello.node}: {err.message}")
        else:
            if not _is_gone(job):  # an agent may end before its rank has said that it started
                self._run(job, rank.hello, started.started_at)
        finally:
            job.starting = None

    def _order(self, spec: WorkerSpec, rank: RankPeer) -> Order:
        return Order(
            job_id=str(spec.worker),
            module=self._agent_module,
            args=tuple(self._args(spec)),
            environment=self._ranks.devices_of(rank),
            threads=self._config.cluster.local.threads,
            workers_on_node=self._ranks.num_beside(rank),
            log=str(log_file(self._state.path, spec)),
            is_inside=self._config.kv.transport == "mpi",
        )

    def _args(self, spec: WorkerSpec) -> list[str]:
        options = ["--name", spec.worker, "--nthreads", "1", "--memory-limit", "0"]
        return [SCHEDULER, *options, *agent_options(spec, self._state.path)]

    def _on_joined(self, hello: Hello) -> None:
        """A rank reported, maybe after its connection was broken: what it runs counts."""
        if hello.ended is not None:
            self._on_ended(hello.rank, hello.ended.job_id, hello.ended.reason)
        running = hello.running
        for job in self._jobs.values():
            if job.rank == hello.rank and (running is None or running.job_id != job.view.job_id) and not job.starting:
                self._end(job, "ENDED")
        if running is not None:
            job = self._jobs.get(running.job_id) or _Job(JobView(job_id=running.job_id, state=JobState.GONE))
            if job.spec is not None and _is_gone(job):  # given up meanwhile; its slot has another one
                self._ranks.send(hello.rank, "end", Signal(job_id=running.job_id, how="kill"))
            elif running.job_id in self._jobs:
                self._run(job, hello, running.started_at)
        self._place()

    def _on_ended(self, rank: int, job_id: str, reason: str) -> None:
        self._ranks.free(rank)
        if job_id in self._jobs:
            self._end(self._jobs[job_id], reason)
        self._place()

    def _on_lost(self, hello: Hello) -> None:
        for job in self._jobs.values():
            if job.rank == hello.rank:
                self._end(job, f"FAILED: rank {hello.rank} on {hello.node} was lost")

    def _run(self, job: _Job, hello: Hello, started_at: float) -> None:
        job.rank = hello.rank
        job.view = JobView(
            job_id=job.view.job_id,
            state=JobState.RUNNING,
            host=hello.node,
            started_at=started_at,
            ends_at=allocation_end(),
        )
        self._changed.set()

    def _end(self, job: _Job, reason: str) -> None:
        if not _is_gone(job):
            job.view = JobView(job_id=job.view.job_id, state=JobState.GONE, reason=reason)
        job.rank = None
        self._changed.set()


def _is_gone(job: _Job) -> bool:
    return job.view.state is JobState.GONE
