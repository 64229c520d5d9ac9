"""An agent that a rank holds: a process of its own, or a task in the rank's process. It decides nothing."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from hpcserve.cluster.command import describe_exit
from hpcserve.errors import ClusterError, HpcserveError

if TYPE_CHECKING:
    from hpcserve.agent.node import NodeAgent

_PR_SET_PDEATHSIG = 1  # prctl(2)


class Child(Protocol):
    """An agent that runs."""

    @property
    def pid(self) -> int:
        """The process that it is in."""
        ...

    async def wait(self) -> str:
        """Return how it ended, in the words of `JobView`, when it and all that it started is gone."""
        ...

    def drain(self) -> None:
        """Have it end in good order; called once. Ignored where it has ended."""
        ...

    def kill(self) -> None:
        """End it and all that it started at once. Ignored where it has ended."""
        ...


class AgentProcess:
    """An agent as a child that leads a session of its own, so that what it started can be ended with it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @classmethod
    def start(cls, command: Sequence[str], environ: Mapping[str, str], log: Path) -> AgentProcess:
        """Run `command` with its output appended to `log`, which only this user can read. Raises `ClusterError`."""
        output = _open_log(log)
        libc = ctypes.CDLL(None)
        rank = os.getpid()

        def begin() -> None:
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # srun passes it to all processes; rank 0 says what it means
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)  # a rank that is killed cannot take its agent along
            if os.getppid() != rank:
                os._exit(143)

        try:
            process = subprocess.Popen(  # not uvloop's: its children heed all signals again
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environ,
                start_new_session=True,
                preexec_fn=begin,
            )
        except OSError as err:
            raise ClusterError(f"cannot start {command[0]}: {err.strerror}") from err
        finally:
            os.close(output)
        return cls(process)

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    async def wait(self) -> str:
        """Return how it ended; what it left in its session is killed."""
        code = await asyncio.to_thread(self._process.wait)
        self._kill_session()
        return describe_exit(code=code) if code >= 0 else describe_exit(signal_number=-code)

    def drain(self) -> None:
        """One SIGTERM, to the agent only."""
        with suppress(ProcessLookupError):
            self._process.terminate()

    def kill(self) -> None:
        """SIGKILL to its session."""
        if self._process.returncode is None:
            self._kill_session()

    def _kill_session(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)


class AgentInside:
    """An agent as a task of the rank's own process, which is one of MPI's. A rank holds one in its life.

    Its log is the process's from then on. Where it fails the process ends, and `mpirun` ends the world with it.
    """

    def __init__(self, agent: NodeAgent, task: asyncio.Task[None]) -> None:
        self._agent = agent
        self._task = task
        self.pid = os.getpid()

    @classmethod
    async def start(cls, args: Sequence[str], environ: Mapping[str, str], log: Path) -> AgentInside:
        """Begin to run it here. Raises `ClusterError`."""
        from hpcserve.agent.__main__ import opened_agent

        os.environ.update(environ)
        _write_into(log)
        started: asyncio.Future[NodeAgent] = asyncio.get_running_loop().create_future()

        async def live() -> None:
            with opened_agent(list(args)) as agent:
                started.set_result(agent)
                await agent.run()

        task = asyncio.create_task(live(), name="agent")
        await asyncio.wait((task, started), return_when=asyncio.FIRST_COMPLETED)
        if not started.done():
            error = task.exception()
            raise ClusterError(f"the agent cannot start: {error}") from error
        return cls(started.result(), task)

    async def wait(self) -> str:
        """Return how it ended in good order; what failed ends the process."""
        try:
            await self._task
        except HpcserveError as err:
            logging.getLogger(__name__).error("%s", err.message)
            os._exit(1)
        return describe_exit()

    def drain(self) -> None:
        """Have it end in good order."""
        self._agent.stop()

    def kill(self) -> None:
        """End the process, and so the world: what hangs in here cannot leave MPI in order."""
        os._exit(137)


def _write_into(log: Path) -> None:
    """Have standard output and standard error go to a log from now on."""
    output = _open_log(log)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)


def _open_log(log: Path) -> int:
    """Return a descriptor that appends to a file which only this user can read. Raises `ClusterError`."""
    try:
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError as err:
        raise ClusterError(f"cannot write the log {log}: {err.strerror}") from err


def agent_command(module: str, args: Sequence[str]) -> list[str]:
    """Return the command line of an agent."""
    return [sys.executable, "-m", module, *args]
