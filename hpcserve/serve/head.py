"""The head process: `python -m hpcserve.serve.head`. Dask scheduler, plugin, reconciler and the frontend's keeper.

`HeadProcess.run` is its life: build, serve until told to stop or hopeless, take everything down. Nothing it started is
left behind, whichever way it ends; what it cannot end (kill -9) `hpcserve down` does.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

from hpcserve.cluster import make_cluster
from hpcserve.comm.address import LOOPBACK, announce_host
from hpcserve.comm.protocol import FrontendInfo, StopRequest
from hpcserve.comm.tls import Identity, security
from hpcserve.config.models import Config
from hpcserve.errors import HpcserveError
from hpcserve.garbage import collect_rarely, return_large_blocks
from hpcserve.head import dashboard
from hpcserve.head.plugin import RoutingPlugin
from hpcserve.head.reconciler import Reconciler
from hpcserve.head.roster import Roster
from hpcserve.head.service import HeadService
from hpcserve.head.units import UnitPlacer
from hpcserve.observability.history import History, keep
from hpcserve.observability.log_files import tail
from hpcserve.observability.logging import configure_logging
from hpcserve.records import HeadRecord, Proc
from hpcserve.router.backfill import BackfillRule
from hpcserve.router.router import Router
from hpcserve.serve.batch_keeper import BatchKeeper
from hpcserve.serve.dask_config import DASK_CONFIG
from hpcserve.serve.frontend_keeper import FrontendKeeper
from hpcserve.serve.listening import address_warnings, plain_http_warnings
from hpcserve.state import StateDir
from hpcserve.types import Phase, Role, Status, WorkerState

log = logging.getLogger("hpcserve.head")

_POLL_S = {"local": 0.25, "mpi": 0.25, "slurm": 1.0}  # while something is under way
_IDLE_POLL_S = {"local": 1.0, "mpi": 1.0, "slurm": 15.0}
_LOOK_S = 1.0  # at who the parent is
_LOG_LINES = 12


class HeadProcess:
    """Owns every long-lived part of a deployment that is not a worker."""

    def __init__(self, config: Config, state: StateDir) -> None:
        self._config = config
        self._state = state
        self._started_at = time.time()
        self._phase = Phase.STARTING
        self._host = announce_host(config)
        self._own_warnings = (*address_warnings(config, self._host), *plain_http_warnings(config))
        self._detail = ""
        self._stopping = asyncio.Event()
        self._is_forced = asyncio.Event()
        self._dashboard: str | None = None
        self._history = History(dashboard.NUM_POINTS)
        identity = Identity(state.tls_cert, state.tls_key)
        backfill = BackfillRule(config.batches.priority, config.batches.max_share)
        self._router = Router(config.router, config.engine.block_size, backfill)
        self._roster = Roster(self._router, self._on_change, on_load=self._on_load)
        units = UnitPlacer(self._router, self._roster, config.engine.block_size)
        self._plugin = RoutingPlugin(self._roster, units)
        self._service = HeadService(
            self._router,
            identity,
            max_wait_s=config.router.queue.max_wait_s,
            make_status=self.status,
            on_frontend=self._on_frontend,
            on_stop=self.request_stop,
        )
        self._cluster = make_cluster(config, state.path)
        self._reconciler = Reconciler(
            config,
            self._cluster,
            self._roster,
            state,
            poll_s=_POLL_S[self._cluster.kind],
            idle_poll_s=_IDLE_POLL_S[self._cluster.kind],
            tail=lambda worker: "\n".join(tail(state.logs / f"{worker}.log", _LOG_LINES)),
        )
        self._frontends = FrontendKeeper(state, config.frontend)
        self._batches = BatchKeeper(config, state)

    async def run(self) -> None:
        """Serve until stopped. Raises `HpcserveError` if the deployment cannot work; then nothing is left, either."""
        async with AsyncExitStack() as stack:
            stack.callback(self._state.clear_head)
            scheduler = await stack.enter_async_context(self._make_scheduler())
            stack.push_async_callback(self._service.close)
            address = await self._service.start(self._host)
            scheduler.add_plugin(self._plugin)
            await self._plugin.start(scheduler)
            if self._config.dashboard.enabled:
                self._dashboard = dashboard.link(scheduler)
            self._state.write_head(
                HeadRecord(
                    proc=Proc.of(os.getpid()),
                    scheduler=scheduler.address,
                    address=address,
                    dashboard=self._dashboard,
                )
            )
            collect_rarely()
            await self._serve()

    def request_stop(self, request: StopRequest) -> None:
        """End `run` soon; a second request forces."""
        if request.force or self._stopping.is_set():
            self._is_forced.set()
        self._stopping.set()

    def status(self) -> Status:
        """Return what the deployment looks like now."""
        config = self._config
        frontends = self._frontends.infos
        frontend = frontends[0] if frontends else None
        return Status(
            name=config.name,
            phase=self._phase,
            model=config.served_name,
            mode=config.pools.mode,
            policy=config.router.policy,
            cluster=self._cluster.kind,
            endpoint=frontend.endpoint if frontend else None,
            unix_socket=next((each.unix_socket for each in frontends if each.unix_socket), None),
            frontend_pid=frontend.pid if frontend else None,
            frontend_pids=tuple(each.pid for each in frontends),
            dashboard=self._dashboard,
            head_pid=os.getpid(),
            head_host=os.uname().nodename,
            started_at=self._started_at,
            wanted=config.pools.sizes,
            workers=self._roster.workers(),
            load=self._roster.loads(),
            num_waiting=self._router.num_waiting,
            num_backfilling=self._router.num_backfilling,
            traffic=self._service.traffic.total(),
            warnings=self._warnings(),
            detail=self._detail,
        )

    async def _serve(self) -> None:
        loops = {
            asyncio.create_task(self._until_stopped(), name="wait for stop"),
            asyncio.create_task(self._service.publish_loop(), name="publish"),
            asyncio.create_task(self._reconciler.run(), name="reconcile"),
            asyncio.create_task(
                keep(self._history, lambda: (self.status(), self._service.traffic.total())), name="keep the history"
            ),
            asyncio.create_task(self._frontends.run(), name="keep the frontends"),
            asyncio.create_task(self._batches.run(), name="keep the batch runner"),
        }
        try:
            done, _ = await asyncio.wait(loops, return_when=asyncio.FIRST_COMPLETED)
            self._phase = Phase.DRAINING
            for task in done:
                task.result()
        except HpcserveError as err:
            self._phase, self._detail = Phase.FAILED, err.message
            self._state.write_failure(err.message)
            self._is_forced.set()
            raise
        finally:
            self._service.publish()
            for task in loops:
                task.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
            await self._take_down()

    async def _until_stopped(self) -> None:
        """Wait for a request. In an allocation the end of rank 0, which started this, is one: nobody comes after it."""
        starter = os.getppid()
        while not self._stopping.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), _LOOK_S)
            if self._cluster.kind == "mpi" and os.getppid() != starter:
                self.request_stop(StopRequest(force=True))

    async def _take_down(self) -> None:
        """Let running requests end, unless forced; then end the frontend and every job."""
        publishing = asyncio.create_task(self._service.publish_loop())
        self._service.refuse()
        try:
            await self._batches.stop()
            await self._drain()
            await self._frontends.stop()
            await self._reconciler.stop_all(force=self._is_forced.is_set())
            await self._cluster.close()
            if self._phase is Phase.DRAINING:
                self._phase = Phase.STOPPED
            self._service.publish()
            await self._service.flush()
        finally:
            publishing.cancel()
            with suppress(asyncio.CancelledError):
                await publishing

    async def _drain(self) -> None:
        deadline = time.monotonic() + self._config.frontend.drain_timeout_s
        while self._has_requests() and time.monotonic() < deadline and not self._is_forced.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._is_forced.wait(), 0.1)

    def _has_requests(self) -> bool:
        return self._router.stats().active_requests + self._router.num_waiting > 0

    def _make_scheduler(self) -> Any:
        import dask
        from distributed import Scheduler

        dask.config.set(DASK_CONFIG)
        if self._config.dashboard.enabled:
            dashboard.register(self.status, self._history)
        return Scheduler(
            protocol="tls",
            host=self._host,
            port=0,
            security=security(self._state.tls_cert, self._state.tls_key),
            dashboard=self._config.dashboard.enabled,
            dashboard_address=f"{LOOPBACK}:{self._config.dashboard.port}",
        )

    def _on_frontend(self, info: FrontendInfo, is_there: bool) -> None:
        self._frontends.take(info, is_there)
        self._on_change()

    def _on_change(self) -> None:
        if self._phase in (Phase.STARTING, Phase.SERVING):
            self._phase = Phase.SERVING if self._is_usable() else Phase.STARTING
        self._service.notify()

    def _on_load(self) -> None:
        self._service.note_load()

    def _is_usable(self) -> bool:
        ready = {info.role for info in self._roster.workers() if info.state is WorkerState.READY}
        needed = {Role(pool) for pool in self._config.pools.sizes}
        return bool(self._frontends.infos) and needed <= ready

    def _warnings(self) -> tuple[str, ...]:
        found = [
            f"{info.worker}: {warning}"
            for info in self._roster.workers()
            if info.engine is not None and not info.state.is_final
            for warning in info.engine.warnings
        ]
        return (*self._own_warnings, *found)


def main(argv: list[str] | None = None) -> int:
    """Run a head and return its exit code."""
    parser = argparse.ArgumentParser(prog="hpcserve.serve.head", description="The head of one hpcserve deployment.")
    parser.add_argument("--state-dir", type=Path, required=True)
    state = StateDir(parser.parse_args(argv).state_dir)
    config = state.read_config()
    configure_logging(config.log_level, config.log_format)
    return_large_blocks()
    import dask_jobqueue  # noqa: F401  imported here, on the main thread, before signal handlers are set
    import uvloop

    async def live() -> None:
        head = HeadProcess(config, state)
        for sign in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(sign, head.request_stop, StopRequest())
        await head.run()

    try:
        with state.locked():
            uvloop.run(live())
    except HpcserveError as err:
        log.error("%s", err.message)
        state.write_failure(err.message)
        return err.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
