"""What a batch is sent to: a deployment of one's own, past its frontends, or an endpoint; and how much at once."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from hpcserve.batch import Client, Endpoint, Patience
from hpcserve.batch.unit import Service
from hpcserve.cli.backend import backend
from hpcserve.cli.deployment import find
from hpcserve.cli.streams import say
from hpcserve.errors import ConfigError, DeploymentError
from hpcserve.types import EngineInfo, Phase, Status, WorkerState

if TYPE_CHECKING:
    from hpcserve.cli.batch import Given
    from hpcserve.config import Config
    from hpcserve.state import StateDir

Over = Literal["dask", "http"]

_DEFAULT_WINDOW = 256
_MAX_WINDOW = 2048
_AHEAD = 1.25  # of what engines run at once: the next ones wait in an engine's or the router's queue already
_MAX_UNIT = 32
_MIN_UNITS = 4
_UNITS_AN_ENGINE = 8  # at least, of those that it runs at once: the last request of a unit holds up an eighth of it


@dataclass(frozen=True)
class Target:
    """What is asked, and what is known about it."""

    endpoint: Endpoint
    state: StateDir | None = None  # of a deployment of one's own
    window: int = _DEFAULT_WINDOW  # requests under way
    unit_size: int = 1  # requests in a Dask task
    num_gpus: int | None = None

    def narrowed(self, window: int) -> Target:
        """Return the same with so many requests under way, in at least a few units."""
        return replace(self, window=window, unit_size=max(1, min(self.unit_size, window // _MIN_UNITS)))

    @asynccontextmanager
    async def opened(self, over: Over | None, patience: Patience, priority: int) -> AsyncIterator[Service]:
        """Connect. Without `over` it is Dask where that can be had. Raises `DeploymentError` or `ConfigError`."""
        if over == "dask" and self.state is None:
            raise ConfigError("--over dask is for deployments of one's own; an --endpoint is spoken to over http")
        async with AsyncExitStack() as stack:
            if over != "http" and self.state is not None:
                try:
                    yield await stack.enter_async_context(self._dask(self.state, patience, priority))
                    return
                except _Unreachable as err:
                    if over is not None:
                        raise DeploymentError(err.message) from err
                    say(f"warning: {err.message}; going over HTTP")
            yield await stack.enter_async_context(Client(self.endpoint, patience, priority=priority))

    @asynccontextmanager
    async def _dask(self, state: StateDir, patience: Patience, priority: int) -> AsyncIterator[Service]:
        from hpcserve.batch.dask_service import DaskService

        logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what goes wrong is told in our words
        service = DaskService(state, state.read_config(), patience, priority=priority, unit_size=self.unit_size)
        try:
            await service.__aenter__()
        except DeploymentError as err:
            raise _Unreachable(err.message) from err
        async with AsyncExitStack() as stack:
            stack.push_async_exit(service)
            yield service

    async def models(self) -> dict[str, int | None]:
        """Return the served models with their context in tokens. Raises `DeploymentError`."""
        async with Client(self.endpoint) as client:
            return await client.models()


class _Unreachable(DeploymentError):
    """It was never connected."""


async def find_target(ctx: click.Context, given: Given) -> Target:
    """Return what the options name. Raises `ConfigError`, and `DeploymentError` for what does not serve."""
    if given["endpoint"] is not None:
        if given["name"] is not None:
            raise ConfigError("--endpoint and --name say the same; give one of them")
        return Target(Endpoint(given["endpoint"], _read_key(given["key_file"])))
    if given["key_file"] is not None:
        raise ConfigError("--key-file is for --endpoint; with --name the key is found")
    state = find(given["name"])
    return target_of(state, await backend(ctx).fetch_status(state))


def target_of(state: StateDir, status: Status) -> Target:
    """Return a deployment as what batches are sent to. Raises `DeploymentError` if it does not serve."""
    if status.phase is not Phase.SERVING or not (status.endpoint or status.unix_socket):
        raise DeploymentError(f"the deployment {state.name!r} is {status.phase}; `hpcserve up` starts one")
    config = state.read_config()
    endpoint = Endpoint(
        url=status.endpoint or "http://localhost/v1",
        key=state.read_key(),
        unix_socket=None if status.endpoint else status.unix_socket,
        ca_file=config.frontend.tls_cert,
    )
    engines = [each.engine for each in status.workers if each.engine is not None and each.role.decodes]
    return Target(endpoint, state, _window(engines), _unit_size(engines), _gpus(status, config))


def _read_key(path: Path | None) -> str | None:
    try:
        return path.read_text().strip() if path is not None else None
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"cannot read a key in {path}: {err}") from err


def _window(engines: list[EngineInfo]) -> int:
    """Return how many requests keep every engine busy."""
    at_once = sum(engine.max_num_seqs or _DEFAULT_WINDOW for engine in engines)
    return max(16, min(int(at_once * _AHEAD), _MAX_WINDOW)) if engines else _DEFAULT_WINDOW


def _unit_size(engines: list[EngineInfo]) -> int:
    smallest = min((engine.max_num_seqs or _DEFAULT_WINDOW for engine in engines), default=_DEFAULT_WINDOW)
    return max(1, min(smallest // _UNITS_AN_ENGINE, _MAX_UNIT))


def gpus_a_worker(config: Config) -> int | None:
    """Return how many GPUs each worker holds, as far as it was asked for."""
    return config.cluster.slurm.gpus if config.cluster.kind in ("slurm", "mpi") else None


def _gpus(status: Status, config: Config) -> int | None:
    per_worker = gpus_a_worker(config)
    num_ready = sum(each.state is WorkerState.READY for each in status.workers)
    return per_worker * num_ready if per_worker else None
