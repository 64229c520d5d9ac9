"""Workers as Slurm jobs, one job a worker, submitted through dask-jobqueue's `SLURMJob`.

`SLURMCluster` is not used: it keeps one kind of worker and counts dead jobs as alive. The pools are the head's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from hpcserve.cluster import slurm_commands
from hpcserve.cluster.command import AGENT_MODULE, log_file
from hpcserve.cluster.protocol import JobEnd, JobState, JobView, WorkerSpec
from hpcserve.cluster.slurm_output import plain_words
from hpcserve.cluster.slurm_room import find_partition, refuse_without_room
from hpcserve.cluster.slurm_script import make_job
from hpcserve.config.models import Config
from hpcserve.errors import ClusterError
from hpcserve.types import Role, WorkerId

_SUBMIT_TIMEOUT_S = 60.0
_CLOSE_TIMEOUT_S = 60.0  # Slurm's own grace between SIGTERM and SIGKILL is 30 s as it comes
_MIN_POLL_S, _MAX_POLL_S = 0.1, 2.0
_BETWEEN_SIGNALS_S = 0.5  # signals do not queue: two SIGTERMs at once may count as one, and the agent would drain
_YOUNG_S = 10.0  # a job that started less than this ago may have no process yet that a signal could reach


class SlurmCluster:
    """Knows the ids of its jobs and asks Slurm for everything else."""

    kind: Literal["slurm"] = "slurm"

    def __init__(self, config: Config, state_dir: Path, *, agent_module: str = AGENT_MODULE) -> None:
        self._config = config
        self._state_dir = state_dir
        self._agent_module = agent_module
        self._jobs: dict[str, JobView] = {}  # the last that was seen of each
        self._was_asked: set[str] = set()  # jobs whose agent has had its SIGTERM
        self._submitting: set[asyncio.Task[str]] = set()

    async def check(self, num_workers: int, *, num_nodes: int | None = None) -> None:
        """Ask sinfo whether there is room, and sbatch whether it would take such a job."""
        slurm = self._config.cluster.slurm
        partition = find_partition(await slurm_commands.list_partitions(), slurm.partition)
        refuse_without_room(partition, slurm, num_workers, num_nodes)
        pool = next(iter(self._config.pools.sizes))
        sample = WorkerSpec(worker=WorkerId(f"{pool}-0"), pool=pool, role=Role(pool))
        try:
            await slurm_commands.run_slurm("sbatch", "--test-only", stdin=self.render(sample))
        except ClusterError as err:
            raise ClusterError(f"Slurm would not take such jobs: {err.message}") from err

    def render(self, spec: WorkerSpec) -> str:
        """Return the job script."""
        return str(self._job(spec).job_script())

    async def launch(self, spec: WorkerSpec) -> str:
        """Submit one job. The submission is finished even if this is cancelled, so that its id is known to `close`."""
        log_file(self._state_dir, spec).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        submission = asyncio.create_task(self._submit(spec), name=f"submit {spec.worker}")
        self._submitting.add(submission)
        submission.add_done_callback(self._submitting.discard)
        try:
            return await asyncio.wait_for(asyncio.shield(submission), _SUBMIT_TIMEOUT_S)
        except TimeoutError as err:
            raise ClusterError(f"Slurm does not answer: sbatch took longer than {_SUBMIT_TIMEOUT_S:g} s") from err

    def adopt(self, job_id: str) -> None:
        """Take charge of a job that an earlier head submitted."""
        self._jobs.setdefault(job_id, JobView(job_id=job_id, state=JobState.PENDING))

    async def observe(self) -> dict[str, JobView]:
        """Ask squeue once."""
        if any(view.state is not JobState.GONE for view in self._jobs.values()):
            await self._refresh()
        return dict(self._jobs)

    async def ends(self, job_ids: Iterable[str]) -> dict[str, JobEnd]:
        """Ask slurmctld about each, and the accounting about those that it has forgotten."""
        return await slurm_commands.find_ends(job_ids)

    async def estimate_start(self, spec: WorkerSpec) -> float | None:
        """Ask `sbatch --test-only`."""
        return await slurm_commands.estimate_start(self.render(spec))

    async def cancel(self, job_ids: Iterable[str], *, force: bool = False) -> None:
        """Remove what is pending; SIGTERM to the agents of what runs, and only to them, so that they can drain.

        With `force` Slurm ends the jobs: SIGTERM to all their processes (the second one for an agent, which ends it at
        once), SIGKILL after the cluster's KillWait.
        """
        await self._refresh()
        alive = [job for job in job_ids if job in self._jobs and self._jobs[job].state is not JobState.GONE]
        drainable = [job for job in alive if not _is_young(self._jobs[job])]
        unasked = [job for job in (alive if force else drainable) if job not in self._was_asked]
        if unasked:
            await slurm_commands.cancel_jobs(unasked, "--batch", "--signal=TERM")
            self._was_asked.update(unasked)
            if force:
                await asyncio.sleep(_BETWEEN_SIGNALS_S)
        ended = alive if force else [job for job in alive if job not in drainable]
        if ended:
            await slurm_commands.cancel_jobs(ended)

    async def wait_gone(self, job_ids: Iterable[str], timeout_s: float) -> None:
        """Return when squeue shows none of these; raises `ClusterError` after `timeout_s`."""
        waiting, poll_s, deadline = set(job_ids), _MIN_POLL_S, time.monotonic() + timeout_s
        while waiting := waiting & await self._refresh():
            if time.monotonic() >= deadline:
                raise ClusterError(
                    f"still in Slurm's queue after {timeout_s:g} s: job {', '.join(sorted(waiting))}; see squeue"
                )
            await asyncio.sleep(poll_s)
            poll_s = min(poll_s * 1.5, _MAX_POLL_S)

    async def close(self) -> None:
        """Wait for submissions under way, end all jobs and return when none is left."""
        if self._submitting:
            await asyncio.wait(self._submitting, timeout=_SUBMIT_TIMEOUT_S)
        if self._jobs:
            await self.cancel(self._jobs, force=True)
            await self.wait_gone(self._jobs, _CLOSE_TIMEOUT_S)
        self._jobs.clear()

    async def _refresh(self) -> set[str]:
        """Update what is known of each job; return those that squeue still shows."""
        listed = await slurm_commands.list_jobs()
        for job_id, last in self._jobs.items():
            if job_id in listed:
                self._jobs[job_id] = listed[job_id].view
            elif last.state is not JobState.GONE:
                self._jobs[job_id] = JobView(job_id=job_id, state=JobState.GONE, reason="not known to Slurm any more")
        return {job_id for job_id in self._jobs if job_id in listed and listed[job_id].is_queued}

    async def _submit(self, spec: WorkerSpec) -> str:
        job = self._job(spec)
        try:
            await job.start()
        except FileNotFoundError as err:
            raise slurm_commands.no_slurm("sbatch") from err
        except RuntimeError as err:  # dask-jobqueue's, with what sbatch wrote
            reason = await self._translate(str(err))
            raise ClusterError(f"Slurm refused {spec.worker}: {reason}") from err
        job_id = str(job.job_id)
        self._jobs[job_id] = JobView(job_id=job_id, state=JobState.PENDING)
        return job_id

    async def _translate(self, problem: str) -> str:
        """Return sbatch's own words, or ours where the partition does not exist: they name those that do."""
        words = plain_words(problem.rpartition("stderr:\n")[2])
        if "partition" in words.lower():
            try:
                find_partition(await slurm_commands.list_partitions(), self._config.cluster.slurm.partition)
            except ClusterError as err:
                return err.message
        return words

    def _job(self, spec: WorkerSpec) -> Any:
        return make_job(self._config, self._state_dir, spec, self._agent_module)


def _is_young(view: JobView) -> bool:
    if view.state is JobState.PENDING:
        return True
    return view.started_at is not None and time.time() - view.started_at < _YOUNG_S
