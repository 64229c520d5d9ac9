"""Looking at a deployment from outside: its status once, or every change of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import msgspec

from hpcserve.cluster import JobState
from hpcserve.comm.channel import Channel, connect
from hpcserve.comm.tls import Identity
from hpcserve.errors import BadRequest, ConnectionLost, DeploymentError
from hpcserve.planner import PlanReport
from hpcserve.records import HeadRecord
from hpcserve.serve.leftovers import head_job, is_alive, live_jobs
from hpcserve.state import StateDir
from hpcserve.types import Phase, Status, WorkerInfo, WorkerState

_HEAD_START_TIMEOUT_S = 60.0
_CALL_TIMEOUT_S = 10.0
_POLL_S = 0.1
_QUEUE_POLL_S = 1.0


class Watcher:
    """A connection to the head that collects what it tells."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._news: asyncio.Queue[Status | None] = asyncio.Queue()
        self._running = asyncio.create_task(channel.run(self))

    async def statuses(self) -> AsyncIterator[Status]:
        """Yield every status until the head is gone."""
        while (status := await self._news.get()) is not None:
            yield status

    async def close(self) -> None:
        """End the connection."""
        self.channel.close()
        await asyncio.wait((self._running,))

    async def on_call(self, op: str, body: msgspec.Raw) -> object:
        """Watchers answer no calls."""
        raise BadRequest(f"watchers answer no call {op!r}")

    def on_message(self, op: str, body: msgspec.Raw) -> None:
        """Take a status."""
        if op == "status":
            self._news.put_nowait(msgspec.msgpack.decode(body, type=Status))

    def on_close(self) -> None:
        """The head is gone."""
        self._news.put_nowait(None)


async def watch(state: StateDir) -> AsyncIterator[Status]:
    """Yield the status now, and at every change until the head is gone.

    Waits for a head that is just being started. Raises `DeploymentError` if there is none to reach.
    """
    while (head := await _look_for_head(state)) is None:
        yield await _status_without_head(state, None)
        await asyncio.sleep(_QUEUE_POLL_S)
    watcher = await connect_watcher(state, head)
    try:
        yield await watcher.channel.call("subscribe", None, Status, timeout_s=_CALL_TIMEOUT_S)
        async for status in watcher.statuses():
            yield status
    finally:
        await watcher.close()


async def fetch_status(state: StateDir) -> Status:
    """Return the status, from the head, or from what it left behind if it is dead."""
    head = state.read_head()
    if head is not None:
        try:
            watcher = await connect_watcher(state, head)
        except DeploymentError:
            return await _status_without_head(state, head)
        try:
            return await watcher.channel.call("subscribe", None, Status, timeout_s=_CALL_TIMEOUT_S)
        finally:
            await watcher.close()
    return await _status_without_head(state, None)


async def fetch_plan(state: StateDir) -> PlanReport:
    """Return what the planner sees and decides. Raises `DeploymentError` without a head."""
    watcher = await connect_watcher(state, await _head(state))
    try:
        return await watcher.channel.call("plan", None, PlanReport, timeout_s=_CALL_TIMEOUT_S)
    finally:
        await watcher.close()


async def connect_watcher(state: StateDir, head: HeadRecord) -> Watcher:
    """Connect to the head. Raises `DeploymentError`."""
    try:
        if head.proc.is_local and not head.proc.is_alive:
            raise ConnectionLost("its process is gone")
        channel = await connect(head.address, Identity(state.tls_cert, state.tls_key), timeout_s=_CALL_TIMEOUT_S)
    except ConnectionLost as err:
        raise DeploymentError(
            f"the head of {state.name!r} (pid {head.proc.pid} on {head.proc.host}) does not answer: {err.message}; "
            f"{_what_to_do(state)}"
        ) from err
    return Watcher(channel)


async def _look_for_head(state: StateDir) -> HeadRecord | None:
    """Return the head; None while its job waits in the queue, or has only just begun. Raises `DeploymentError`."""
    if state.read_head_job() is None or state.read_head() is not None:
        return await _head(state)
    if await head_job(state) is None and state.read_head() is None:
        raise DeploymentError(_why_none(state))
    return state.read_head()


def _why_none(state: StateDir) -> str:
    reason = state.read_failure() or f"see {state.logs / 'head.log'}"
    return f"the head of {state.name!r} is not running: {reason}"


async def _head(state: StateDir) -> HeadRecord:
    deadline = time.monotonic() + _HEAD_START_TIMEOUT_S
    while True:
        if (head := state.read_head()) is not None:
            return head
        spawned = state.read_spawned()
        if spawned is None or (spawned.is_local and not spawned.is_alive) or time.monotonic() > deadline:
            raise DeploymentError(_why_none(state))
        await asyncio.sleep(_POLL_S)


def _what_to_do(state: StateDir) -> str:
    return f"hpcserve up --name {state.name} brings it back, hpcserve down --name {state.name} ends what is left"


async def _status_without_head(state: StateDir, head: HeadRecord | None) -> Status:
    config = state.read_config()
    spawned = state.read_spawned()
    starting = head is None and await asyncio.to_thread(is_alive, state, spawned)
    jobs = await live_jobs(state)
    failure = state.read_failure()
    queued = await head_job(state)
    if queued is not None and queued.state is JobState.PENDING:
        phase, detail = Phase.STARTING, f"the head waits in Slurm's queue: job {queued.job_id} ({queued.reason})"
    elif queued is not None:
        phase, detail = Phase.STARTING, f"the head's job {queued.job_id} starts"
    elif head is not None or jobs:
        phase, detail = Phase.FAILED, failure or f"the head is gone; {_what_to_do(state)}"
    else:
        phase = Phase.STARTING if starting else Phase.FAILED if failure else Phase.STOPPED
        detail = failure
    return Status(
        name=config.name,
        phase=phase,
        model=config.served_name,
        mode=config.pools.mode,
        policy=config.router.policy,
        cluster=config.cluster.kind,
        wanted=config.pools.sizes,
        workers=tuple(
            WorkerInfo(
                worker=job.worker,
                pool=job.pool,
                role=job.role,
                state=WorkerState.STARTING,
                job_id=job.job_id,
                detail="still there; its head is gone",
            )
            for job in jobs
        ),
        detail=detail,
    )
