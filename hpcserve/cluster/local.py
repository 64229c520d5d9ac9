"""Workers as processes of this machine. They outlive the head that launched them, as Slurm jobs do."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from hpcserve.cluster.command import AGENT_MODULE, SCHEDULER, agent_options, describe_exit, log_file
from hpcserve.cluster.job_ends import read_ends
from hpcserve.cluster.protocol import JobEnd, JobState, JobView, WorkerSpec
from hpcserve.config.models import Config
from hpcserve.errors import ClusterError
from hpcserve.records import Proc

_CLOSE_TIMEOUT_S = 10.0
_POLL_S = 0.05  # between looks at the process table


class LocalCluster:
    """Each worker leads a session of its own, so that a terminal's Ctrl-C passes it by and its children can be ended.

    A job id is `<pid>:<start time>`, which tells a worker from a later process with the same pid. It says nothing
    about other machines: those see such jobs as gone.
    """

    kind: Literal["local"] = "local"

    def __init__(self, config: Config, state_dir: Path, *, agent_module: str = AGENT_MODULE) -> None:
        self._config = config
        self._state_dir = state_dir
        self._agent_module = agent_module
        self._jobs: dict[str, _Process] = {}

    async def check(self, num_workers: int, *, num_nodes: int | None = None) -> None:
        """Accept everything: this machine's processes share what there is, and stand for as many nodes as asked."""

    def render(self, spec: WorkerSpec) -> str:
        """Return the command line, with what it sets in the environment before it."""
        settings = [f"{name}={value}" for name, value in self._environment().items()]
        return " ".join([*settings, shlex.join(self._command(spec))])

    async def launch(self, spec: WorkerSpec) -> str:
        """Start one process. Raises `ClusterError` if its log cannot be opened or the interpreter not be run."""
        try:
            process = _Process.start(self._command(spec), self._environment(), log_file(self._state_dir, spec))
        except OSError as err:
            raise ClusterError(f"cannot start {spec.worker}: {err}") from err
        self._jobs[process.job_id] = process
        return process.job_id

    def adopt(self, job_id: str) -> None:
        """Take charge of a process that an earlier head started."""
        self._jobs.setdefault(job_id, _Process(job_id))

    async def observe(self) -> dict[str, JobView]:
        """Look at the process table."""
        return {job_id: process.view() for job_id, process in self._jobs.items()}

    async def ends(self, job_ids: Iterable[str]) -> dict[str, JobEnd]:
        """Say what the end of each process said."""
        return read_ends(await self.observe(), job_ids)

    async def estimate_start(self, spec: WorkerSpec) -> float | None:
        """Answer nothing: there is no queue."""

    async def cancel(self, job_ids: Iterable[str], *, force: bool = False) -> None:
        """SIGTERM to each agent, once; with `force` SIGKILL to all that it started."""
        for job_id in job_ids:
            if job_id in self._jobs:
                self._jobs[job_id].end(force=force)

    async def wait_gone(self, job_ids: Iterable[str], timeout_s: float) -> None:
        """Return when none of these runs; raises `ClusterError` after `timeout_s`."""
        waiting, deadline = set(job_ids), time.monotonic() + timeout_s
        while waiting := {job for job in waiting if job in self._jobs and self._jobs[job].is_alive()}:
            if time.monotonic() >= deadline:
                pids = ", ".join(sorted(job.partition(":")[0] for job in waiting))
                raise ClusterError(f"still running after {timeout_s:g} s: process {pids}")
            await asyncio.sleep(_POLL_S)

    async def close(self) -> None:
        """Kill what is left and forget it."""
        await self.cancel(self._jobs, force=True)
        await self.wait_gone(self._jobs, _CLOSE_TIMEOUT_S)
        self._jobs.clear()

    def _command(self, spec: WorkerSpec) -> list[str]:
        options = ["--name", spec.worker, "--nthreads", "1", "--memory-limit", "0"]
        start = [sys.executable, "-m", self._agent_module, SCHEDULER]
        return [*start, *options, *agent_options(spec, self._state_dir)]

    def _environment(self) -> dict[str, str]:
        """Share the cores out, since every engine would otherwise take them all."""
        num_workers = sum(self._config.pools.sizes.values())
        threads = self._config.cluster.local.threads or max(1, len(os.sched_getaffinity(0)) // num_workers)
        return {"OMP_NUM_THREADS": str(threads)}


class _Process:
    """One worker's process, a child of this one or not."""

    def __init__(self, job_id: str, child: subprocess.Popen[bytes] | None = None) -> None:
        pid, _, start_time = job_id.partition(":")
        if not (pid.isdecimal() and start_time.isdecimal()):
            raise ClusterError(f"{job_id!r} is no job of a local deployment: expected <pid>:<start time>")
        self.job_id = job_id
        self._proc = Proc(pid=int(pid), host=socket.gethostname(), start_time=int(start_time))
        self._child = child
        self._started_at = time.time() if child else None
        self._was_seen = child is not None  # alive, by us: so its process group is not a stranger's
        self._was_asked = False
        self._ending = ""  # how it ended

    @classmethod
    def start(cls, command: list[str], environment: dict[str, str], log: Path) -> _Process:
        """Run `command` with its output appended to `log`, which only this user can read."""
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                env=os.environ | environment,
                start_new_session=True,
            )
        finally:
            os.close(descriptor)
        try:
            proc = Proc.of(child.pid)
        except ProcessLookupError as err:
            raise OSError(f"{_describe(child.wait())} at once; see {log}") from err
        return cls(f"{proc.pid}:{proc.start_time}", child)

    def view(self) -> JobView:
        if not self.is_alive():
            return JobView(job_id=self.job_id, state=JobState.GONE, reason=self._ending)
        host = socket.gethostname()
        return JobView(job_id=self.job_id, state=JobState.RUNNING, host=host, started_at=self._started_at)

    def is_alive(self) -> bool:
        """Look once. The first look that finds the agent dead also kills what it left in its session."""
        if self._ending:
            return False
        if self._proc.is_alive:
            self._was_seen = True
            return True
        if self._was_seen:
            self._kill_session()
        self._ending = _describe(self._child.wait()) if self._child else "ENDED"
        return False

    def end(self, *, force: bool) -> None:
        if not self.is_alive():
            return
        if force:
            self._kill_session()
        elif not self._was_asked:
            self._was_asked = True
            _signal(os.kill, self._proc.pid, signal.SIGTERM)

    def _kill_session(self) -> None:
        """SIGKILL to the process group. Its number is not given away while a member lives or the leader is unreaped."""
        _signal(os.killpg, self._proc.pid, signal.SIGKILL)


def _signal(send: Callable[[int, int], None], pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        send(pid, number)


def _describe(returncode: int) -> str:
    """Say how a process ended, in the words used for Slurm jobs."""
    return describe_exit(code=returncode) if returncode >= 0 else describe_exit(signal_number=-returncode)
