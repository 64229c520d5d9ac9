"""Ending a deployment: through its head, or without one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress

from hpcserve.cluster import Cluster, make_cluster
from hpcserve.cluster.head_job import cancel_head
from hpcserve.cluster.protocol import JobEnd
from hpcserve.comm.protocol import StopRequest
from hpcserve.errors import ClusterError, ConnectionLost, DeploymentError
from hpcserve.records import HeadRecord, Proc
from hpcserve.serve.last_lives import write_last_lives
from hpcserve.serve.leftovers import head_job, is_alive, live_jobs
from hpcserve.serve.processes import end_process, wait_for_end
from hpcserve.serve.watch import connect_watcher, fetch_status
from hpcserve.state import StateDir
from hpcserve.types import Status

_CALL_TIMEOUT_S = 10.0
_HEAD_END_TIMEOUT_S = 30.0
_GRACE_S = 5.0
_POLL_S = 0.1
_SLURM_POLL_S = 0.5


async def stop(state: StateDir, *, force: bool) -> AsyncIterator[Status]:
    """End a deployment, yielding its status as it goes down; returns when no job and no process of it is left.

    Raises `DeploymentError` if nothing of it runs, `ClusterError` if jobs cannot be ended.
    """
    await _refuse_idle(state)
    head = state.read_head()
    if head is not None:
        with suppress(DeploymentError, ConnectionLost):
            watcher = await connect_watcher(state, head)
            try:
                yield await watcher.channel.call("subscribe", None, Status, timeout_s=_CALL_TIMEOUT_S)
                await watcher.channel.call("stop", StopRequest(force=force), Status, timeout_s=_CALL_TIMEOUT_S)
                async for status in watcher.statuses():
                    yield status
            finally:
                await watcher.close()
        await _wait_for_head_end(state, head)
    await _clean_up(state)
    yield await fetch_status(state)


async def _refuse_idle(state: StateDir) -> None:
    if not state.exists():
        raise DeploymentError(f"no deployment called {state.name!r}: nothing in {state.path}")
    processes = (state.read_spawned(), *(each.proc for each in state.read_frontends()))
    if (
        state.read_head()
        or await head_job(state)
        or any(proc and proc.is_alive for proc in processes)
        or await live_jobs(state)
    ):
        return
    raise DeploymentError(f"deployment {state.name!r} is not running")


async def _wait_for_head_end(state: StateDir, head: HeadRecord) -> None:
    """Wait for the process of this host, or for its last act: that the state directory names no head any more."""
    if head.proc.is_local:
        await wait_for_end(head.proc, _HEAD_END_TIMEOUT_S)
        return
    deadline = time.monotonic() + _HEAD_END_TIMEOUT_S
    while state.read_head() == head:
        if time.monotonic() > deadline:
            return
        await asyncio.sleep(_POLL_S)


async def _clean_up(state: StateDir) -> None:
    """End what a dead head left behind."""
    head = state.read_head()
    processes: list[Proc | None] = [head.proc if head else None, state.read_spawned()]
    processes += [each.proc for each in state.read_frontends()]
    if head is not None and not head.proc.is_local and await asyncio.to_thread(is_alive, state, head):
        raise DeploymentError(f"the head of {state.name!r} still runs on {head.proc.host} and does not end")
    await _end_head_job(state)
    for proc in processes:
        if proc is not None:
            await end_process(proc, grace_s=_GRACE_S)
    await _end_jobs(state)
    state.clear_head()
    state.write_head_job(None)
    state.write_jobs([])


async def _end_head_job(state: StateDir) -> None:
    """Cancel the head's own job, which may not have begun, and wait until Slurm is done with it."""
    deadline, is_cancelled = time.monotonic() + _HEAD_END_TIMEOUT_S, False
    while (queued := await head_job(state)) is not None and time.monotonic() < deadline:
        if not is_cancelled:
            await cancel_head(queued.job_id)
            is_cancelled = True
        await asyncio.sleep(_SLURM_POLL_S)


async def _end_jobs(state: StateDir) -> None:
    live = await live_jobs(state)  # also those that nobody has put on record
    records = list({record.job_id: record for record in [*live, *state.read_jobs()]}.values())
    if not records:
        return
    jobs = [record.job_id for record in live]
    cluster = make_cluster(state.read_config(), state.path)
    for record in records:
        cluster.adopt(record.job_id)
    if jobs:
        await _end_all(cluster, jobs)
    ends: dict[str, JobEnd] = {}
    with suppress(ClusterError):
        ends = await cluster.ends([record.job_id for record in records])
    write_last_lives(state, records, jobs, ends)


async def _end_all(cluster: Cluster, jobs: list[str]) -> None:
    await cluster.cancel(jobs)
    try:
        await cluster.wait_gone(jobs, timeout_s=15)
    except ClusterError:
        await cluster.cancel(jobs, force=True)
        await cluster.wait_gone(jobs, timeout_s=30)
