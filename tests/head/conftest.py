"""A cluster in memory: jobs do what the test says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest

from hpcserve.cluster.job_ends import read_ends
from hpcserve.cluster.protocol import JobEnd, JobState, JobView, WorkerSpec
from hpcserve.comm.protocol import Announcement, Command
from hpcserve.config import Config
from hpcserve.errors import ClusterError
from hpcserve.head.reconciler import Reconciler
from hpcserve.head.roster import Roster
from hpcserve.router.router import Router
from hpcserve.state import StateDir
from hpcserve.types import EngineInfo, LoadReport, WorkerId, WorkerInfo, WorkerState


@dataclass
class FakeCluster:
    """Keeps jobs as a dictionary; nothing happens unless a test does it."""

    kind: Literal["local", "slurm", "mpi"] = "slurm"
    specs: dict[str, WorkerSpec] = field(default_factory=dict)
    views: dict[str, JobView] = field(default_factory=dict)
    cancelled: list[tuple[str, bool]] = field(default_factory=list)
    refusal: str = ""
    num_looks: int = 0
    num_estimates: int = 0
    starts_at: float | None = None  # what Slurm would say of a new job
    unsaid: set[str] = field(default_factory=set)  # jobs of which it does not say yet how they ended
    refuses_exclusions: bool = False
    stubborn: bool = False  # jobs ignore a cancel without force

    async def check(self, num_workers: int, *, num_nodes: int | None = None) -> None: ...

    def render(self, spec: WorkerSpec) -> str:
        return f"run {spec.worker}"

    async def launch(self, spec: WorkerSpec) -> str:
        if self.refusal:
            raise ClusterError(self.refusal)
        if spec.exclude and self.refuses_exclusions:
            raise ClusterError("Requested node configuration is not available")
        job_id = str(100 + len(self.specs))
        self.specs[job_id] = spec
        self.views[job_id] = JobView(job_id=job_id, state=JobState.PENDING, reason="Resources")
        return job_id

    def adopt(self, job_id: str) -> None: ...

    async def observe(self) -> dict[str, JobView]:
        self.num_looks += 1
        return dict(self.views)

    async def ends(self, job_ids: Iterable[str]) -> dict[str, JobEnd]:
        return read_ends(self.views, set(job_ids) - self.unsaid)

    async def estimate_start(self, spec: WorkerSpec) -> float | None:
        self.num_estimates += 1
        return self.starts_at

    async def cancel(self, job_ids: Iterable[str], *, force: bool = False) -> None:
        for job_id in job_ids:
            self.cancelled.append((job_id, force))
            if force or not self.stubborn:
                self.become(job_id, JobState.GONE, reason="CANCELLED")

    async def wait_gone(self, job_ids: Iterable[str], timeout_s: float) -> None:
        left = [job_id for job_id in job_ids if self.views[job_id].state is not JobState.GONE]
        if left:
            raise ClusterError(f"still there: {left}")

    async def close(self) -> None: ...

    def become(self, job_id: str, state: JobState, **changes: object) -> None:
        self.views[job_id] = replace(self.views[job_id], state=state, **changes)  # type: ignore[arg-type]

    @property
    def alive(self) -> list[str]:
        return [job_id for job_id, view in self.views.items() if view.state is not JobState.GONE]


class World:
    """A reconciler with a fake cluster, a fake clock, and agents that say what the test makes them say."""

    def __init__(self, config: Config, state: StateDir) -> None:
        self.now = 1000.0
        self.told: list[tuple[WorkerId, Command]] = []
        self.cluster = FakeCluster()
        self.state = state
        self.router = Router(config.router, config.engine.block_size)
        self.changes = 0
        self.roster = Roster(self.router, self._count, clock=lambda: self.now)
        self.config = config
        self.reconciler = self.another_reconciler()

    def renew_head(self) -> None:
        """Have a new head that has heard nobody yet."""
        self.router = Router(self.config.router, self.config.engine.block_size)
        self.roster = Roster(self.router, self._count, clock=lambda: self.now)
        self.reconciler = self.another_reconciler()

    def another_reconciler(self) -> Reconciler:
        return Reconciler(
            self.config,
            self.cluster,
            self.roster,
            self.state,
            poll_s=0.01,
            idle_poll_s=60.0,
            tail=lambda worker: f"log of {worker}",
            tell=lambda worker, command: self.told.append((worker, command)),
            clock=lambda: self.now,
            wall=lambda: self.now,
        )

    async def step(self, seconds: float = 0.0, *, is_quiet: bool = False) -> None:
        self.now += seconds
        if not is_quiet:
            self.sound()
        await self.reconciler.step()

    def announce(self, job_id: str, state: WorkerState, detail: str = "") -> WorkerId:
        info = self.info_of(job_id, state, detail)
        self.roster.hear(Announcement(worker=info.worker, info=info), f"dask-{job_id}")
        return info.worker

    def report(self, job_id: str, load: LoadReport) -> WorkerId:
        worker = self.cluster.specs[job_id].worker
        self.roster.hear(Announcement(worker=worker, load=load), f"dask-{job_id}")
        return worker

    def info_of(self, job_id: str, state: WorkerState, detail: str = "") -> WorkerInfo:
        spec = self.cluster.specs[job_id]
        engine = EngineInfo(engine="mock", model="m", block_size=32, num_kv_blocks=10, max_model_len=100)
        return WorkerInfo(
            worker=spec.worker,
            pool=spec.pool,
            role=spec.role,
            state=state,
            address=f"tls://{job_id}",
            engine=engine,
            detail=detail,
        )

    def run(self, job_id: str, walltime_s: float) -> None:
        """Have a job start, with an end, and its worker be READY."""
        ends_at = self.now + walltime_s
        self.cluster.become(job_id, JobState.RUNNING, host="gpu1", started_at=self.now, ends_at=ends_at)
        self.announce(job_id, WorkerState.READY)

    def end(self, job_id: str, reason: str = "COMPLETED") -> None:
        """Have a job end, and its agent leave."""
        self.cluster.become(job_id, JobState.GONE, reason=reason)
        self.roster.lose(f"dask-{job_id}")

    def successor_of(self, job_id: str) -> str:
        """Return the newest job of the same slot."""
        slot = self.cluster.specs[job_id].worker.rpartition("-")[0]
        return [job for job, spec in self.cluster.specs.items() if spec.worker.startswith(f"{slot}-")][-1]

    def sound(self) -> None:
        """Have every agent that is joined give a sign of life."""
        for info in self.roster.ready().values():
            self.roster.hear(Announcement(worker=info.worker), "")

    async def bring_up(self) -> list[str]:
        await self.step()
        for job_id in self.cluster.alive:
            self.cluster.become(job_id, JobState.RUNNING, host="gpu1")
            self.announce(job_id, WorkerState.READY)
        await self.step(1)
        return self.cluster.alive

    def states(self) -> dict[WorkerId, WorkerState]:
        return {info.worker: info.state for info in self.roster.workers()}

    def _count(self) -> None:
        self.changes += 1


@pytest.fixture
def world(tmp_path: Path) -> World:
    config = Config.model_validate(
        {"engine": {"kind": "mock"}, "pools": {"mode": "disaggregated", "prefill": 1, "decode": 2}}
    )
    state = StateDir(tmp_path / "d")
    state.create()
    return World(config, state)
