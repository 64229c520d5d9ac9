"""A deployment in memory that plays a script, in the place of `hpcserve.serve`. As a program: the CLI on top of it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from hpcserve.config import Config
from hpcserve.errors import ConfigError, DeploymentError, HpcserveError
from hpcserve.records import JobRecord
from hpcserve.state import StateDir
from hpcserve.types import LoadReport, Phase, Role, Status, WorkerId, WorkerInfo, WorkerState

Step = Status | HpcserveError | Callable[[], None] | None
"""To yield, to raise, to call, or (None) to wait for ever."""


@dataclass
class FakeServe:
    """Each call of `watch` and of `stop` plays the next script; the last one is played again and again."""

    watches: list[Sequence[Step]]
    stops: list[Sequence[Step]] = field(default_factory=lambda: [()])
    refuses: HpcserveError | None = None
    left: str = ""  # by a head that has died
    calls: list[str] = field(default_factory=list)
    last: Status | None = None

    def start(
        self,
        config: Config,
        *,
        given: Collection[str] | None = None,
        wrong: Sequence[str] = (),
        on_adopting: Callable[[str], None] = lambda _: None,
    ) -> StateDir:
        self._called("start")
        if self.refuses is not None:
            raise self.refuses
        if wrong:
            raise ConfigError("\n".join(wrong))
        if self.left:
            on_adopting(self.left)
        state = StateDir.of(config.name)
        state.create()
        state.write_config(config)
        state.write_jobs([JobRecord(worker=WorkerId("w"), pool="both", role=Role.BOTH, job_id="1", cluster="slurm")])
        return state

    def render_jobs(self, config: Config) -> list[tuple[str, str]]:
        self._called("render_jobs")
        return [(f"both-{index}", f"#!/bin/sh\nrun {index}\n") for index in range(config.pools.workers)]

    async def watch(self, state: StateDir) -> AsyncIterator[Status]:
        self._called("watch")
        async for status in self._play(self.watches):
            yield status

    async def fetch_status(self, state: StateDir) -> Status:
        if self.last is None:
            return make_status(Phase.STOPPED, name=state.name)
        return self.last

    async def stop(self, state: StateDir, *, force: bool) -> AsyncIterator[Status]:
        self._called(f"stop force={force}")
        if not state.read_jobs():
            raise DeploymentError(f"deployment {state.name!r} is not running")
        async for status in self._play(self.stops):
            yield status
        state.write_jobs([])
        self._called("stopped")

    async def _play(self, scripts: list[Sequence[Step]]) -> AsyncIterator[Status]:
        for step in scripts.pop(0) if len(scripts) > 1 else scripts[0]:
            if step is None:
                await asyncio.Event().wait()
            elif isinstance(step, Status):
                self.last = step
                yield step
            elif isinstance(step, HpcserveError):
                raise step
            else:
                step()
                await asyncio.sleep(0)  # signals are delivered by the loop

    def _called(self, what: str) -> None:
        self.calls.append(what)
        with suppress(OSError):  # the terminal may have gone
            print(f"fake: {what}", file=sys.stderr, flush=True)


def make_worker(name: str, state: WorkerState, detail: str = "", host: str | None = None) -> WorkerInfo:
    return WorkerInfo(
        worker=WorkerId(name), pool="both", role=Role.BOTH, state=state, job_id="17", host=host, detail=detail
    )


def make_status(phase: Phase, *workers: WorkerInfo, name: str = "default", detail: str = "", **given: str) -> Status:
    return Status(
        name=name,
        phase=phase,
        model="mock",
        mode="aggregated",
        policy="kv",
        cluster=given.get("cluster", "local"),
        endpoint="http://127.0.0.1:8123/v1" if phase is Phase.SERVING else None,
        dashboard="http://127.0.0.1:8787/status",
        frontend_pid=4242,
        head_pid=4241,
        head_host="login1",
        started_at=1.0,
        wanted={"both": max(1, len(workers))},
        workers=workers,
        load={worker.worker: LoadReport(num_running=2, num_waiting=1) for worker in workers},
        warnings=("RDMA is not there: sockets are used",),
        detail=detail,
    )


PENDING = make_status(Phase.STARTING, make_worker("both-0-a1", WorkerState.PENDING, "Resources"))
LOADING = make_status(Phase.STARTING, make_worker("both-0-a1", WorkerState.LOADING, host="gpu1"))
SERVING = make_status(Phase.SERVING, make_worker("both-0-a1", WorkerState.READY, host="gpu1"))


if __name__ == "__main__":
    from hpcserve.cli import main

    slow_stop = sys.argv[1] == "slow-stop"
    fake = FakeServe([[PENDING, LOADING, SERVING, None]], stops=[[None], []] if slow_stop else [[]])
    main(sys.argv[2:], obj=fake)
