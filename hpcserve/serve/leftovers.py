"""What of a deployment still exists, found without asking its head."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from hpcserve.cluster import JobState, JobView, make_cluster
from hpcserve.cluster.head_job import look_at_head
from hpcserve.comm.channel import connect
from hpcserve.comm.tls import Identity
from hpcserve.errors import ClusterAway, ConnectionLost
from hpcserve.records import FrontendRecord, HeadRecord, JobRecord, Proc
from hpcserve.serve.strays import find_strays
from hpcserve.state import StateDir

_REACH_TIMEOUT_S = 3.0


@dataclass(frozen=True)
class Leftovers:
    """Processes and jobs of a deployment that are still there."""

    head_is_alive: bool
    frontends: list[FrontendRecord]
    jobs: list[JobRecord]

    @property
    def description(self) -> str:
        """Name what is left besides the head, for a message; empty if nothing."""
        parts = [f"{len(self.jobs)} worker{'s' * (len(self.jobs) != 1)}"] if self.jobs else []
        if self.frontends:
            pids = ", ".join(str(each.proc.pid) for each in self.frontends)
            several = len(self.frontends) > 1
            parts.append(f"{len(self.frontends)} frontends (pids {pids})" if several else f"the frontend (pid {pids})")
        is_plural = len(self.frontends) + len(self.jobs) > 1
        return " and ".join(parts) + (" are" if is_plural else " is") if parts else ""


def find_leftovers(state: StateDir, *, trusts_records: bool = False) -> Leftovers:
    """Look. Raises `ClusterAway` if Slurm has to be asked and does not answer.

    With `trusts_records` the jobs on record then count as there, where a head has died.
    """
    if not state.exists():
        return Leftovers(head_is_alive=False, frontends=[], jobs=[])
    return Leftovers(
        head_is_alive=is_alive(state, state.read_head())
        or is_alive(state, state.read_spawned())
        or asyncio.run(head_job(state)) is not None,
        frontends=[each for each in state.read_frontends() if each.proc.is_alive],
        jobs=_jobs(state, trusts_records=trusts_records),
    )


def is_alive(state: StateDir, head: HeadRecord | Proc | None) -> bool:
    """Whether the head runs: on this host by its process, on another by its answering."""
    if head is None:
        return False
    proc = head if isinstance(head, Proc) else head.proc
    if proc.is_local:
        return proc.is_alive
    return isinstance(head, HeadRecord) and asyncio.run(_answers(state, head))


def _jobs(state: StateDir, *, trusts_records: bool) -> list[JobRecord]:
    try:
        return asyncio.run(live_jobs(state))
    except ClusterAway:
        if not (trusts_records and state.has_lost_head()):
            raise
        return state.read_jobs()


async def head_job(state: StateDir) -> JobView | None:
    """Return the head's own Slurm job while it waits or runs. Raises `ClusterError`."""
    job_id = state.read_head_job()
    return None if job_id is None else await look_at_head(job_id)


async def live_jobs(state: StateDir) -> list[JobRecord]:
    """Return the jobs that have not ended: those on record, and where a head died those that it did not note."""
    records = state.read_jobs()
    if state.has_lost_head():
        records += await find_strays(state.read_config().cluster.kind, state)
    if not records:
        return []
    cluster = make_cluster(state.read_config(), state.path)
    for record in records:
        cluster.adopt(record.job_id)
    views = await cluster.observe()
    return [record for record in records if views[record.job_id].state is not JobState.GONE]


async def _answers(state: StateDir, head: HeadRecord) -> bool:
    try:
        channel = await connect(head.address, Identity(state.tls_cert, state.tls_key), timeout_s=_REACH_TIMEOUT_S)
    except ConnectionLost:
        return False
    channel.close()
    return True
