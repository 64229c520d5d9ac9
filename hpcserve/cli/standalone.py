"""A deployment for one piece of work: up, do it, down. Nothing is left, and it is known how long engines ran.

What the work is, is the caller's matter; how a deployment comes up and goes down is `session.py`'s.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import signal
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from hpcserve.cli.backend import Backend, backend
from hpcserve.cli.interrupts import Interrupts
from hpcserve.cli.options import load_config, set_key
from hpcserve.cli.ranks import be_rank, name_of_start
from hpcserve.cli.session import Session
from hpcserve.comm.address import LOOPBACK
from hpcserve.errors import ConfigError
from hpcserve.types import Status, WorkerId, WorkerState

if TYPE_CHECKING:
    from hpcserve.cli.batch import Given
    from hpcserve.config import Config
    from hpcserve.state import StateDir

_Result = TypeVar("_Result")
_NOT_YET = WorkerState.PENDING


def own_deployment(ctx: click.Context, given: Given) -> Standalone:
    """Return the deployment that the options describe: of a name that no other has, on any free port of this host.

    `--model` is the directory of its model. Of several ranks that `mpirun` or `srun` started, only the first one
    returns: the others hold a worker and exit. Raises `ConfigError`.
    """
    if given["endpoint"] is not None or given["key_file"] is not None:
        raise ConfigError("--endpoint and --key-file are of a deployment that runs; --standalone starts one")
    if given["model"] is not None:
        set_key(ctx, "model.path", given["model"], "--model")
    config = load_config(ctx).config
    is_named = ctx.get_parameter_source("name") is ParameterSource.COMMANDLINE and given["name"] is not None
    name = given["name"] if is_named else _fresh_name(config)
    frontend = config.frontend.model_copy(update={"port": 0, "host": LOOPBACK, "processes": 1})
    batches = config.batches.model_copy(update={"max_share": 1.0})  # nobody else is there to leave room for
    config = config.model_copy(update={"name": name, "frontend": frontend, "batches": batches})
    code = be_rank(config)
    if code is not None:
        ctx.exit(code)
    return Standalone(serve=backend(ctx), config=config)


@dataclass
class EngineTime:
    """For how long workers have run, from their start to their end."""

    started: dict[WorkerId, float] = field(default_factory=dict)  # `time.monotonic`
    ended: dict[WorkerId, float] = field(default_factory=dict)

    def see(self, status: Status, now: float) -> None:
        """Take a status."""
        for info in status.workers:
            if info.state is not _NOT_YET:
                self.started.setdefault(info.worker, now)
            if info.state.is_final:
                self.ended.setdefault(info.worker, now)

    def total_s(self, now: float) -> float:
        """Return the seconds of all workers together; those that have not ended run until now."""
        return sum(self.ended.get(worker, now) - started for worker, started in self.started.items())


@dataclass(frozen=True, kw_only=True)
class Standalone:
    """One deployment, for one `run`."""

    serve: Backend
    config: Config
    timeout_s: float | None = None  # to SERVING; None: the default, and as long as it takes on Slurm
    engine_time: EngineTime = field(default_factory=EngineTime)
    interrupts: Interrupts = field(default_factory=lambda: Interrupts((signal.SIGUSR1,)))

    def models(self) -> dict[str, int | None]:
        """Return the model that it will serve, with its context in tokens where that is known before."""
        from hpcserve.frontend.prompts.model_files import context_of

        return {self.config.served_name: context_of(self.config.model)}

    async def run(self, work: Callable[[StateDir, Status], Coroutine[Any, Any, _Result]]) -> _Result:
        """Return what `work` returns. Its records stay where something failed, for its logs.

        Raises as `Session.during`: `Interrupted` where a signal came before the work began, or after it.
        """
        states: list[StateDir] = []

        session = Session(
            serve=self.serve,
            config=self.config,
            attached=True,
            timeout_s=self.timeout_s,
            announce=lambda state, _: states.append(state),
            interrupts=self.interrupts,
            on_status=lambda status: self.engine_time.see(status, time.monotonic()),
        )
        result = await session.during(work)
        for state in states:
            await asyncio.to_thread(_remove, state)
        return result


def _fresh_name(config: Config) -> str:
    return name_of_start() if config.cluster.kind == "mpi" else f"batch-{secrets.token_hex(4)}"


def _remove(state: StateDir) -> None:
    """Remove the records of a deployment that is gone; kept where jobs are left."""
    if state.read_head() is None and not state.read_jobs():
        shutil.rmtree(state.path, ignore_errors=True)
