"""What there is to hurt: the deployment's processes, jobs and files, found without asking any of its processes.

A fault has to find its target while head and frontends are dead, too. So everything comes from the process table, from
Slurm and from the records in the state directory.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from hpcserve.records import JobRecord
from hpcserve.state import StateDir
from tests.chaos.clocks import Clocks
from tests.chaos.commands import run
from tests.chaos.daemons import SlurmDaemons
from tests.fixtures_deployment import HPCSERVE

_SLURM_S = 8.0
_RUNS_ALREADY = "is already running"
_HEAD_BACK_S = 90.0  # for `up` to succeed: the disk may be full, Slurm's controller dead
_AFTER_DEATH_S = 12.0  # of a frontend: then another one has long taken its place


@dataclass(frozen=True)
class Agent:
    """One agent that runs."""

    worker: str
    pid: int
    job_id: str | None  # None: its job is not on record any more
    node: str | None


@dataclass
class Excuses:
    """When connections of clients may end: after the death of a frontend, until another one can have come."""

    deaths: list[float] = field(default_factory=list)  # monotonic times
    head_gone: dict[float, float] = field(default_factory=dict)  # from: until; without one no frontend is started anew

    def allow(self, at: float) -> bool:
        return any(death <= at <= self._until(death) for death in self.deaths)

    def _until(self, death: float) -> float:
        until = death + _AFTER_DEATH_S
        for begin, end in self.head_gone.items():
            if begin <= until and end >= death:
                until = max(until, end + _AFTER_DEATH_S)
        return until


@dataclass
class World:
    """One deployment on one development cluster."""

    state: StateDir
    env: dict[str, str]
    daemons: SlurmDaemons
    disk: Path | None = None  # a small file system of its own under the state directory
    clocks: Clocks | None = None
    excuses: Excuses = field(default_factory=Excuses)
    head_back_s: list[float] = field(default_factory=list)  # how long each `up` after a death took

    def agents(self) -> list[Agent]:
        """The agents that run, by worker."""
        jobs = {str(job.worker): job for job in self.jobs()}
        found = []
        for pid, arguments in self._processes("hpcserve.agent"):
            worker = arguments[arguments.index("--name") + 1]
            job = jobs.get(worker)
            found.append(Agent(worker, pid, job.job_id if job else None, job.node if job else None))
        return sorted(found, key=lambda each: each.worker)

    def frontends(self) -> list[int]:
        """Pids of the frontends."""
        return [pid for pid, _ in self._processes("hpcserve.serve.frontend")]

    def heads(self) -> list[int]:
        """Pids of the heads: one, unless something is wrong or it is dead."""
        return [pid for pid, _ in self._processes("hpcserve.serve.head")]

    def engine_cores(self) -> list[int]:
        """Pids of engine cores that are processes of their own."""
        agents = {each.pid for each in self.agents()}
        return [pid for pid in _all_pids() if _parent(pid) in agents and "EngineCore" in _command(pid)]

    def everybody(self) -> dict[str, int]:
        """Every process of the deployment: what it is, and its pid."""
        named = {each.worker: each.pid for each in self.agents()}
        for kind, pids in (("head", self.heads()), ("frontend", self.frontends())):
            named |= {f"{kind} {pid}": pid for pid in pids}
        return named

    def jobs(self) -> list[JobRecord]:
        """What is on record."""
        try:
            return self.state.read_jobs()
        except (OSError, msgspec.MsgspecError):
            return []

    async def slurm(self, *command: str) -> str:
        """One of Slurm's commands; empty where its controller does not answer soon."""
        done = await run(*command, env=self.env, timeout_s=_SLURM_S)
        return done.stdout if done.returncode == 0 else ""

    async def hpcserve(self, *arguments: str, timeout_s: float = 120) -> tuple[int, str, str]:
        """A command on this deployment."""
        done = await run(HPCSERVE, *arguments, "--name", self.state.name, env=self.env, timeout_s=timeout_s)
        return done.returncode, done.stdout, done.stderr

    async def status(self) -> dict[str, Any] | None:
        """What `hpcserve status --json` says; None where it says nothing."""
        _, out, _ = await self.hpcserve("status", "--json", timeout_s=30)
        return dict(json.loads(out)) if out else None

    async def bring_head_back(self, died_at: float) -> str:
        """Run `up` until it succeeds after the death of the head, and note how long it took until that served."""
        asked_at, num_tries = time.monotonic(), 0
        while True:
            num_tries += 1
            up = asyncio.create_task(self.hpcserve("up", "--detach", "--json"))
            served_at = await self._when_serving(up)
            code, _, err = await up  # which waits some seconds for the other workers
            if code == 0 or _RUNS_ALREADY in err:  # killed twice, it needs one successor
                break
            if time.monotonic() - asked_at > _HEAD_BACK_S:
                raise RuntimeError(f"`hpcserve up` after the head's death: exit code {code}: {err.strip()}")
            await asyncio.sleep(1.0)
        self.excuses.head_gone[died_at] = served_at
        self.head_back_s.append(served_at - asked_at)
        return f"served after {served_at - asked_at:.1f} s" + (f", {num_tries} tries" if num_tries > 1 else "")

    async def _when_serving(self, up: asyncio.Task[tuple[int, str, str]]) -> float:
        """Return when a head served, or when `up` returned."""
        while not up.done():
            status = await self.status()
            if status is not None and status["phase"] == "serving":
                break
            await asyncio.sleep(0.3)
        return time.monotonic()

    def _processes(self, module: str) -> list[tuple[int, list[str]]]:
        found = []
        for pid in _all_pids():
            arguments = _command(pid).split("\0")
            if module in arguments and str(self.state.path) in arguments and _state_of(pid) not in "ZX":
                found.append((pid, arguments))
        return sorted(found)


async def until(condition: Any, timeout_s: float, every_s: float = 0.5) -> bool:
    """Wait until an async condition holds; False if it never did."""
    deadline = time.monotonic() + timeout_s
    while not await condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(every_s)
    return True


def _all_pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["X", "0"]


def _state_of(pid: int) -> str:
    return _stat(pid)[0]


def _parent(pid: int) -> int:
    return int(_stat(pid)[1])
