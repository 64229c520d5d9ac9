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
from collections.abc import Coroutine
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

from hpcserve.cluster import Cluster
from hpcserve.cluster.head_job import requeue_head
from hpcserve.comm.address import LOOPBACK, announce_host
from hpcserve.comm.protocol import FrontendInfo, StopRequest
from hpcserve.comm.tls import security
from hpcserve.config.models import Config
from hpcserve.errors import ClusterAway, ClusterError, HpcserveError
from hpcserve.garbage import collect_rarely, return_large_blocks
from hpcserve.head import dashboard
from hpcserve.observability.history import keep
from hpcserve.observability.logging import configure_logging
from hpcserve.records import HeadRecord, Proc
from hpcserve.serve.dask_config import DASK_CONFIG
from hpcserve.serve.gathering import Gathering, adopt_jobs
from hpcserve.serve.head_parts import build_parts
from hpcserve.serve.head_status import Moment, describe, is_usable
from hpcserve.serve.listening import address_warnings, listened_on, plain_http_warnings, ports_of
from hpcserve.serve.strays import end_late_ones, find_strays
from hpcserve.state import StateDir
from hpcserve.types import Phase, Status, WorkerId

log = logging.getLogger("hpcserve.head")

_LOOK_S = 1.0  # at who the parent is


class HeadProcess:
    """Owns every long-lived part of a deployment that is not a worker."""

    def __init__(self, config: Config, state: StateDir, *, own_job: str | None = None) -> None:
        """`own_job` is the Slurm job that holds this process and the frontends, and nothing else."""
        self._config = config
        self._state = state
        self._own_job = own_job
        self._is_leaving = False  # for a successor, which takes over
        self._host = announce_host(config)
        listened = listened_on(config.frontend, self._host, has_job=own_job is not None)
        warnings = (*address_warnings(config, self._host), *plain_http_warnings(config, listened))
        self._moment = Moment(started_at=time.time(), warnings=warnings)
        self._stopping = asyncio.Event()
        self._is_forced = asyncio.Event()
        self._parts = build_parts(config, state, self, listened)
        self._gathering = Gathering(self._parts.roster)

    async def run(self) -> None:
        """Serve until stopped. Raises `HpcserveError` if the deployment cannot work; then nothing is left, either."""
        async with AsyncExitStack() as stack:
            before = self._state.retire_head()
            self._state.write_failure("")
            stack.callback(self._forget_head)
            returning = await self._adopt(before)
            scheduler_port, own_port = ports_of(before, self._host)
            scheduler = await stack.enter_async_context(self._make_scheduler(scheduler_port))
            stack.push_async_callback(self._parts.service.close)
            address = await self._parts.service.start(self._host, own_port)
            scheduler.add_plugin(self._parts.plugin)
            await self._parts.plugin.start(scheduler)
            if self._config.dashboard.enabled:
                self._moment.dashboard = dashboard.link(scheduler)
            self._state.write_head(
                HeadRecord(
                    proc=Proc.of(os.getpid()),
                    scheduler=scheduler.address,
                    address=address,
                    dashboard=self._moment.dashboard,
                )
            )
            collect_rarely()
            await self._serve(returning, is_successor=before is not None)

    def request_stop(self, request: StopRequest) -> None:
        """End `run` soon; a second request forces."""
        if request.force or self._stopping.is_set():
            self._is_forced.set()
        self._stopping.set()

    def leave(self) -> None:
        """End `run` soon with the workers running on, for the head that comes next. Not while going down already."""
        self._is_leaving |= not self._stopping.is_set()  # a signal may come twice
        self._stopping.set()

    def status(self) -> Status:
        """Return what the deployment looks like now."""
        return describe(self._config, self._parts, self._moment)

    async def _serve(self, returning: list[WorkerId], *, is_successor: bool) -> None:
        loops = {
            asyncio.create_task(self._gather(returning, is_successor), name="gather"),
            asyncio.create_task(self._until_stopped(), name="wait for stop"),
            asyncio.create_task(self._parts.service.publish_loop(), name="publish"),
            asyncio.create_task(self._parts.reconciler.run(), name="reconcile"),
            asyncio.create_task(
                keep(self._parts.history, lambda: (self.status(), self._parts.service.traffic.total())),
                name="keep the history",
            ),
            asyncio.create_task(self._parts.planning.run(), name="plan"),
            asyncio.create_task(self._parts.frontends.run(), name="keep the frontends"),
            asyncio.create_task(self._parts.batches.run(), name="keep the batch runner"),
        }
        try:
            done, _ = await asyncio.wait(loops, return_when=asyncio.FIRST_COMPLETED)
            self._moment.phase = Phase.STARTING if self._is_leaving else Phase.DRAINING
            for task in done:
                task.result()
        except HpcserveError as err:
            self._moment.phase, self._moment.detail = Phase.FAILED, err.message
            self._state.write_failure(err.message)
            self._is_forced.set()
            raise
        finally:
            self._parts.service.publish()
            for task in loops:
                task.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
            await (self._hand_over() if self._is_leaving else self._take_down())

    def _forget_head(self) -> None:
        if not self._is_leaving:  # the next one looks for what this one has not noted
            self._state.clear_head()

    async def _adopt(self, before: HeadRecord | None) -> list[WorkerId]:
        """Take over what a head has left that died. Return the workers that are about to join."""
        records = self._state.read_jobs()
        cluster: Cluster | None = self._parts.cluster
        if before is not None:
            try:
                records += await find_strays(self._parts.cluster.kind, self._state)
            except ClusterAway as err:
                log.warning("taking over what is on record, and looking for other jobs later: %s", err.message)
                cluster = None
        returning = await adopt_jobs(cluster, self._parts.reconciler, records, is_planned=self._config.planner.enabled)
        self._parts.frontends.adopt(self._state.read_frontends())
        return returning

    async def _gather(self, returning: list[WorkerId], is_successor: bool) -> None:
        """Let the frontends in once the workers are back; then see to what no record speaks of."""
        if returning:
            self._parts.service.gathered.clear()
            await self._gathering.wait(returning)
            self._parts.service.gathered.set()
        if is_successor:
            await end_late_ones(self._parts.cluster, self._state)
        await asyncio.Event().wait()

    async def _until_stopped(self) -> None:
        """Wait for a request. In an allocation the end of rank 0, which started this, is one: nobody comes after it."""
        starter = os.getppid()
        while not self._stopping.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), _LOOK_S)
            if self._parts.cluster.kind == "mpi" and os.getppid() != starter:
                self.request_stop(StopRequest(force=True))

    async def _hand_over(self) -> None:
        """The job ends: streams that fit in are finished, workers run on, and the job is put into the queue again."""
        await self._parts.batches.stop()
        await self._parts.frontends.stop()
        if self._own_job is not None:
            try:
                self._state.write_head_job(await requeue_head(self._config, self._state.path, self._own_job))
            except ClusterError as err:  # Slurm may have done so already; or the job was cancelled, and stays so
                log.warning("the head's job was not put into the queue again: %s", err.message)

    async def _take_down(self) -> None:
        """Let running requests end, unless forced; then end the frontend and every job."""
        publishing = asyncio.create_task(self._parts.service.publish_loop())
        self._parts.service.refuse()
        try:
            await self._parts.batches.stop()
            await self._drain()
            await self._parts.frontends.stop()
            await self._parts.reconciler.stop_all(force=self._is_forced.is_set())
            await self._parts.cluster.close()
            if self._moment.phase is Phase.DRAINING:
                self._moment.phase = Phase.STOPPED
            self._parts.service.publish()
            await self._parts.service.flush()
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
        return self._parts.router.stats().active_requests + self._parts.router.num_waiting > 0

    def _make_scheduler(self, port: int) -> Any:
        import dask
        from distributed import Scheduler

        dask.config.set(DASK_CONFIG)
        if self._config.dashboard.enabled:
            dashboard.register(self.status, self._parts.history)
        return Scheduler(
            protocol="tls",
            host=self._host,
            port=port,
            security=security(self._state.tls_cert, self._state.tls_key),
            dashboard=self._config.dashboard.enabled,
            dashboard_address=f"{LOOPBACK}:{self._config.dashboard.port}",
        )

    def on_frontend(self, info: FrontendInfo, is_there: bool) -> None:
        """A frontend has connected, or has gone."""
        self._parts.frontends.take(info, is_there)
        self.on_change()

    def on_change(self) -> None:
        """Something has changed that the status tells."""
        self._gathering.note()
        if self._moment.phase in (Phase.STARTING, Phase.SERVING):
            self._moment.phase = Phase.SERVING if is_usable(self._config, self._parts) else Phase.STARTING
        self._parts.service.notify()

    def on_load(self) -> None:
        """The load of a worker has changed."""
        self._parts.service.note_load()


def main(argv: list[str] | None = None) -> int:
    """Run a head and return its exit code."""
    parser = argparse.ArgumentParser(prog="hpcserve.serve.head", description="The head of one hpcserve deployment.")
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--own-job", action="store_true", help="this Slurm job is the head's alone")
    options = parser.parse_args(argv)
    state = StateDir(options.state_dir)
    own_job = os.environ.get("SLURM_JOB_ID") if options.own_job else None
    config = state.read_config()
    configure_logging(config.log_level, config.log_format)
    return_large_blocks()
    import dask_jobqueue  # noqa: F401  imported here, on the main thread, before signal handlers are set

    async def live() -> None:
        head = HeadProcess(config, state, own_job=own_job)
        loop = asyncio.get_running_loop()
        for sign in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(sign, head.request_stop, StopRequest())
        if own_job is not None:
            loop.add_signal_handler(signal.SIGTERM, head.leave)
        await head.run()

    try:
        with state.locked():
            return _run(live(), state)
    except HpcserveError as err:  # there is another head: it is none of ours what happens
        log.error("%s", err.message)
        return err.exit_code


def _run(life: Coroutine[Any, Any, None], state: StateDir) -> int:
    import uvloop

    try:
        uvloop.run(life)
    except HpcserveError as err:
        log.error("%s", err.message)
        state.write_failure(err.message)
        return err.exit_code
    except OSError as err:  # the disk is full, most likely: workers and frontends go on for the next head
        log.error("cannot go on: %s", err)
        with suppress(OSError):
            state.write_failure(str(err))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
