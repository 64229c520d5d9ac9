"""One worker from its first breath to its last: the state machine of a node agent.

STARTING -> LOADING -> WARMING -> READY -> DRAINING -> STOPPED, or FAILED from anywhere. Each change is announced. The
parts (engine, data plane, membership) know nothing of each other; this is where they meet.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from hpcserve.agent.backfill import Backfill
from hpcserve.agent.data_plane import DataPlane
from hpcserve.agent.ends import NOTICE_S, job_ends
from hpcserve.agent.hot_prefixes import HotPrefixes
from hpcserve.agent.kv_log import KvLog
from hpcserve.agent.kv_outbox import KvOutbox
from hpcserve.agent.leaving import Leaving, when_to_leave
from hpcserve.agent.membership import Membership
from hpcserve.agent.prefix_moves import move_prefixes
from hpcserve.agent.preflight import Exhibition, check_peers
from hpcserve.agent.takers import find_peers, has_taker
from hpcserve.agent.traced_engine import TracedEngine
from hpcserve.agent.units import Units
from hpcserve.agent.warm_up import warm_up
from hpcserve.comm.protocol import Announcement, Command
from hpcserve.comm.tls import Identity
from hpcserve.config.models import Config
from hpcserve.engine.factory import make_engine
from hpcserve.engine.protocol import AsyncEngine, EngineContext
from hpcserve.engine.push import run_of
from hpcserve.errors import EngineError, HpcserveError
from hpcserve.garbage import collect_rarely
from hpcserve.observability.tracing import open_tracer
from hpcserve.router.backfill import BackfillRule
from hpcserve.state import StateDir
from hpcserve.types import (
    EngineRequest,
    KvEventBatch,
    LoadReport,
    Role,
    WorkerId,
    WorkerInfo,
    WorkerState,
)

log = logging.getLogger(__name__)

_LOAD_INTERVAL_S = 0.25
_SIGN_OF_LIFE_S = 1.0  # the head's patience is `head/silence.py`
_LAST_WORDS_S = {WorkerState.FAILED: 10.0, WorkerState.STOPPED: 1.0}  # why it failed is worth joining for


@dataclass(frozen=True, kw_only=True)
class NodeSpec:
    """Which worker this process is."""

    worker: WorkerId
    pool: str
    role: Role
    host: str
    scratch: Path


class NodeAgent:
    """Runs one engine for one deployment. `run` is the whole life."""

    def __init__(self, spec: NodeSpec, config: Config, state: StateDir) -> None:
        self._spec = spec
        self._config = config
        self._stopping = asyncio.Event()
        self._kv_log = KvLog(spec.worker)
        self._kv_outbox = KvOutbox(self._kv_log, self._tell_cache, lambda: not self._engine.load().num_running)
        self._engine: AsyncEngine = make_engine(config, self._engine_context())
        self._tracer = open_tracer(
            config.tracing.endpoint, config.tracing.sample, namespace=config.name, instance=spec.worker
        )
        if self._tracer is not None:
            self._engine = TracedEngine(self._engine, self._tracer)
        rule = BackfillRule(config.batches.priority, config.batches.max_share)
        self._backfill = Backfill(self._engine.load, rule)
        self._identity = identity = Identity(state.tls_cert, state.tls_key)
        exhibition = Exhibition(config) if config.kv.preflight else None
        self._hot = HotPrefixes()
        self._data_plane = DataPlane(self._engine, identity, self._note_request, exhibition, moves_kv=config.moves_kv)
        self._leave_at: float | None = None  # as the head told
        self._units = Units(
            self._engine,
            prefills=spec.role.prefills,
            on_death=self._data_plane.note_death,
            gate=self._backfill.gate,
        )
        self._membership = Membership(
            spec.worker,
            state,
            host=spec.host,
            scratch=spec.scratch,
            on_joined=self._everything,
            on_command=self._on_command,
            units=self._units,
        )
        self._info = WorkerInfo(
            worker=spec.worker,
            pool=spec.pool,
            role=spec.role,
            state=WorkerState.STARTING,
            host=os.environ.get("SLURMD_NODENAME") or socket.gethostname(),  # the name that Slurm's commands take
            pid=os.getpid(),
            job_id=os.environ.get("SLURM_JOB_ID"),
        )

    def stop(self) -> None:
        """Drain, then end `run`. Safe to call twice, and from a signal handler of the loop."""
        self._stopping.set()

    async def run(self) -> None:
        """Serve until `stop`. Raises `HpcserveError` if the engine cannot start, or dies."""
        address = await self._data_plane.start(self._spec.host)
        self._info = msgspec.structs.replace(self._info, address=address)
        async with self._background():
            try:
                await self._serve()
            except HpcserveError as err:
                await self._end(WorkerState.FAILED, err.message)
                raise
            await self._end(WorkerState.STOPPED, "")

    async def _serve(self) -> None:
        self._enter(WorkerState.LOADING)
        if not await self._start_engine():
            return
        died, stopping = self._data_plane.engine_died, asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait((died, stopping), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
        if died.done():
            raise EngineError(died.result())
        await self._drain()

    async def _start_engine(self) -> bool:
        """Bring the engine to READY; False if told to stop meanwhile."""
        starting = asyncio.create_task(self._load_and_warm())
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                return True
            return False
        finally:
            stopping.cancel()
            starting.cancel()
            with suppress(asyncio.CancelledError, HpcserveError):
                await starting

    async def _load_and_warm(self) -> None:
        started = time.monotonic()
        engine = await self._engine.start(self._kv_outbox.put)
        self._backfill.open(engine)
        self._enter(WorkerState.WARMING, engine=engine)
        await warm_up(self._engine, engine)
        if self._config.kv.preflight:
            await check_peers(self._info, self._config, self._identity, self._membership.peers)
        log.info("%s is READY after %.1f s", self._spec.worker, time.monotonic() - started)
        collect_rarely()
        self._enter(WorkerState.READY)

    async def _drain(self) -> None:
        leave_at = when_to_leave(self._leave_at, self._info.ends_at, self._config, time.time())
        self._info = msgspec.structs.replace(self._info, leaves_at=leave_at)
        self._enter(WorkerState.DRAINING)
        leaving = Leaving(self._data_plane, lambda: has_taker(self._membership, self._spec.worker))
        bound = max(0.0, leave_at - time.time())
        emptied = asyncio.gather(leaving.run(leave_at), self._units.drained(bound))
        if self._config.moves_kv:
            peers = partial(find_peers, self._membership, self._spec.worker)
            await move_prefixes(self._hot, run_of(self._engine), self._info, peers, self._identity, leave_at)
        if not all(await emptied):
            log.warning("after %.1f s requests still run, or their KV was not fetched", bound)

    async def _end(self, state: WorkerState, detail: str) -> None:
        await self._data_plane.close()
        self._kv_outbox.close()
        await self._engine.stop()
        if self._tracer is not None:
            await asyncio.to_thread(self._tracer.close)
        self._enter(state, detail=detail)
        self._units.close()
        last_words = Announcement(worker=self._spec.worker, info=self._info, load=self._engine.load())
        await self._membership.announce_now(last_words, timeout_s=_LAST_WORDS_S[state])

    @asynccontextmanager
    async def _background(self) -> AsyncIterator[None]:
        parts = (self._membership.run(), self._report_load(), self._follow_end())
        loops = [asyncio.create_task(part) for part in parts]
        try:
            yield
        finally:
            for task in loops:
                task.cancel()
            await asyncio.gather(*loops, return_exceptions=True)

    async def _follow_end(self) -> None:
        """Know when the job ends; leave before that, if nobody has said so by then."""
        leaving: asyncio.TimerHandle | None = None
        try:
            async for end in job_ends(self._info.job_id):
                self._info = msgspec.structs.replace(self._info, ends_at=end)
                self._membership.announce(Announcement(worker=self._spec.worker, info=self._info))
                if leaving is not None:
                    leaving.cancel()
                left_s = end - self._config.renewal.leave_s - NOTICE_S - time.time()
                leaving = asyncio.get_running_loop().call_later(max(0.0, left_s), self.stop)
        finally:
            if leaving is not None:
                leaving.cancel()

    async def _report_load(self) -> None:
        """Say what has changed, and every second that we are there: READY and silent, a worker is taken for frozen."""
        last: LoadReport | None = None
        said_at = 0.0
        while True:
            await asyncio.sleep(_LOAD_INTERVAL_S)
            self._give_up_if_orphaned()
            if self._info.state not in (WorkerState.READY, WorkerState.DRAINING):
                continue
            load, now = self._engine.load(), time.monotonic()
            if load != last or now - said_at >= _SIGN_OF_LIFE_S:
                news = load if load != last else None
                last, said_at = load, now
                self._membership.announce(Announcement(worker=self._spec.worker, load=news))

    def _give_up_if_orphaned(self) -> None:
        bound = self._config.cluster.orphan_timeout_s
        if not self._membership.is_joined and time.monotonic() - self._membership.last_joined > bound:
            log.error("no head for %g s: stopping", bound)
            self.stop()

    def _note_request(self, request: EngineRequest) -> None:
        self._backfill.note(request)
        self._hot.note(request)

    def _tell_cache(self, batch: KvEventBatch) -> None:
        self._membership.announce(Announcement(worker=self._spec.worker, kv=batch))

    def _on_command(self, command: Command) -> None:
        if command.op == "stop":
            self._leave_at = command.leave_at
            self.stop()
        elif command.op == "snapshot":
            self._membership.announce(Announcement(worker=self._spec.worker, kv=self._kv_log.snapshot()))
        elif command.op == "role" and command.role is not None:
            self._take_role(command.role)

    def _take_role(self, role: Role) -> None:
        """Be labelled anew: the engine can do both, and what runs goes on."""
        log.info("%s is a %s worker now", self._spec.worker, role)
        self._units.prefills = role.prefills
        self._info = msgspec.structs.replace(self._info, role=role)
        self._membership.announce(Announcement(worker=self._spec.worker, info=self._info))

    def _everything(self) -> Announcement:
        return Announcement(
            worker=self._spec.worker, info=self._info, load=self._engine.load(), kv=self._kv_log.snapshot()
        )

    def _enter(self, state: WorkerState, *, detail: str = "", engine: object = None) -> None:
        changes = {"state": state, "detail": detail} | ({"engine": engine} if engine is not None else {})
        self._info = msgspec.structs.replace(self._info, **changes)
        log.info("%s %s%s", self._spec.worker, state, f": {detail}" if detail else "")
        self._membership.announce(Announcement(worker=self._spec.worker, info=self._info))

    def _engine_context(self) -> EngineContext:
        return EngineContext(
            worker=self._spec.worker,
            role=self._spec.role,
            host=self._spec.host,
            moves_kv=self._config.moves_kv,
            scratch=self._spec.scratch,
        )
