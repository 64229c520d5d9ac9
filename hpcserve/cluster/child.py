"""An agent that a rank holds: a process of its own, or a task in the rank's process. It decides nothing."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from hpcserve.cluster.command import describe_exit
from hpcserve.errors import ClusterError

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

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, command: Sequence[str], environ: Mapping[str, str], log: Path) -> AgentProcess:
        """Run `command` with its output appended to `log`, which only this user can read. Raises `ClusterError`."""
        try:
            log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as err:
            raise ClusterError(f"cannot write the log {log}: {err.strerror}") from err
        libc = ctypes.CDLL(None)
        rank = os.getpid()

        def die_with_the_rank() -> None:  # a rank that is killed cannot take its agent along
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != rank:
                os._exit(143)

        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environ,
                start_new_session=True,
                preexec_fn=die_with_the_rank,
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
        code = await self._process.wait()
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


def agent_command(module: str, args: Sequence[str]) -> list[str]:
    """Return the command line of an agent."""
    return [sys.executable, "-m", module, *args]
