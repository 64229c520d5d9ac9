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
from tests.chaos.commands import run
from tests.chaos.daemons import SlurmDaemons
from tests.fixtures_deployment import HPCSERVE

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
    head_gone: list[tuple[float, float]] = field(default_factory=list)  # from, until; without one none is started anew

    def allow(self, at: float) -> bool:
        return any(death <= at <= self._until(death) for death in self.deaths)

    def _until(self, death: float) -> float:
        until = death + _AFTER_DEATH_S
        for begin, end in self.head_gone:
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
        """One of Slurm's commands; empty where its controller does not answer."""
        done = await run(*command, env=self.env, timeout_s=30)
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
        """Run `up` again after the death of the head, and note how long it took."""
        asked_at = time.monotonic()
        code, _, err = await self.hpcserve("up", "--detach", "--json")
        now = time.monotonic()
        self.excuses.head_gone.append((died_at, now))
        if code:
            raise RuntimeError(f"`hpcserve up` after the head's death: exit code {code}: {err.strip()}")
        self.head_back_s.append(now - asked_at)
        return f"back after {now - asked_at:.1f} s"

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
