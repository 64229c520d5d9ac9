"""What `hpcserve batch run` puts together: the deployment's endpoint, the plan, the signals, the progress."""

from __future__ import annotations

import asyncio
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import click
import uvloop
from rich.console import Console

from hpcserve.batch import (
    Batch,
    Client,
    Endpoint,
    LineReader,
    OpenAILines,
    Patience,
    Plan,
    Prompts,
    Source,
    Stop,
    Tally,
    open_source,
)
from hpcserve.batch.paths import Paths
from hpcserve.batch.plan import Work
from hpcserve.batch.progress import show
from hpcserve.cli.backend import backend
from hpcserve.cli.deployment import find
from hpcserve.cli.streams import LastingStderr, say
from hpcserve.errors import ConfigError, DeploymentError
from hpcserve.types import Phase, Status, WorkerState

if TYPE_CHECKING:
    from hpcserve.cli.batch import Given
    from hpcserve.config import Config

_DEFAULT_WINDOW = 256
_MAX_WINDOW = 2048
_OTHER_FILES = 256
_AHEAD = 1.25  # of what engines run at once: the next ones wait in the router's queue already
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    is_complete: bool
    tally: Tally
    paths: Paths
    gpus: int | None


@dataclass(frozen=True)
class _Target:
    """What is asked, and what is known about it."""

    endpoint: Endpoint
    window: int = _DEFAULT_WINDOW
    gpus: int | None = None


def run_batch(ctx: click.Context, given: Given) -> Outcome:
    """Run until all is done or a signal comes. Raises `ConfigError`, `DeploymentError` or `HpcserveError`."""
    paths = Paths(given["output"])
    source = open_source(given["input"], prompt_column=given["prompt_column"], id_column=given["id_column"])
    target, models = asyncio.run(_find_target(ctx, given))
    plan = Plan(source, _reader(source, given, list(models)), paths, is_fresh=given["fresh"])
    with plan.opened(models) as work:  # not on a loop: it may take a minute, and Ctrl-C ends it at once
        if work.warning:
            say(f"warning: {work.warning}")
        if work.tally.num_before:
            say(f"going on: {work.tally.num_before:,} of {work.tally.num_requests:,} requests are finished")
        is_complete = uvloop.run(_run(work, target, given))
        return Outcome(is_complete, work.tally, paths, target.gpus)


async def _run(work: Work, target: _Target, given: Given) -> bool:
    patience = Patience(attempts=given["attempts"], silence_s=given["patience"])
    window = given["concurrency"] or target.window
    _allow_connections(window)
    async with Client(target.endpoint, patience, priority=given["priority"]) as client:
        with _stop_on_signals() as stop:
            showing = asyncio.create_task(show(work.tally, Console(file=cast("IO[str]", LastingStderr())), say))
            try:
                return await Batch(work, client, stop, window=window, grace_s=given["grace"]).run()
            finally:
                showing.cancel()
                await asyncio.gather(showing, return_exceptions=True)


def _reader(source: Source, given: Given, models: list[str]) -> LineReader:
    is_table = source.noun == "row"
    for_prompts = {
        "max_tokens": given["max_tokens"],
        "temperature": given["temperature"],
        "top_p": given["top_p"],
        "seed": given["seed"],
        "system": given["system"],
        "model": given["model"],
    }
    told: dict[str, Any] = {name: value for name, value in for_prompts.items() if value is not None}
    if not given["prompts"] and not is_table:
        if told:
            raise ConfigError(f"--{next(iter(told)).replace('_', '-')} is for --prompts; requests say it themselves")
        return OpenAILines()
    model, system = told.pop("model", None), told.pop("system", None)
    if model is None and len(models) != 1:
        raise ConfigError(f"say which model with --model: {', '.join(models) or 'none is served'}")
    return Prompts(model or models[0], told, system=system, noun=source.noun, is_text=not is_table)


async def _find_target(ctx: click.Context, given: Given) -> tuple[_Target, dict[str, int | None]]:
    target = await _target(ctx, given)
    async with Client(target.endpoint) as client:
        return target, await client.models()


async def _target(ctx: click.Context, given: Given) -> _Target:
    if given["endpoint"] is not None:
        if given["name"] is not None:
            raise ConfigError("--endpoint and --name say the same; give one of them")
        return _Target(Endpoint(given["endpoint"], _read_key(given["key_file"])))
    if given["key_file"] is not None:
        raise ConfigError("--key-file is for --endpoint; with --name the key is found")
    state = find(given["name"])
    status = await backend(ctx).fetch_status(state)
    if status.phase is not Phase.SERVING or not (status.endpoint or status.unix_socket):
        raise DeploymentError(f"the deployment {state.name!r} is {status.phase}; `hpcserve up` starts one")
    config = state.read_config()
    endpoint = Endpoint(
        url=status.endpoint or "http://localhost/v1",
        key=state.read_key(),
        unix_socket=None if status.endpoint else status.unix_socket,
        ca_file=config.frontend.tls_cert,
    )
    return _Target(endpoint, _window(status), _gpus(status, config))


def _read_key(path: Path | None) -> str | None:
    try:
        return path.read_text().strip() if path is not None else None
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"cannot read a key in {path}: {err}") from err


def _allow_connections(num: int) -> None:
    """Raise the limit of open files to what so many connections need, as far as this user may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = num + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
        )


def _window(status: Status) -> int:
    """Return how many requests keep every engine busy."""
    engines = [each.engine for each in status.workers if each.engine is not None and each.role.decodes]
    at_once = sum(engine.max_num_seqs or _DEFAULT_WINDOW for engine in engines)
    return max(16, min(int(at_once * _AHEAD), _MAX_WINDOW)) if engines else _DEFAULT_WINDOW


def _gpus(status: Status, config: Config) -> int | None:
    """Return how many GPUs the ready workers hold, as far as it was asked for."""
    per_worker = config.cluster.slurm.gpus if status.cluster == "slurm" else None
    num_ready = sum(each.state is WorkerState.READY for each in status.workers)
    return per_worker * num_ready if per_worker else None


@contextmanager
def _stop_on_signals() -> Iterator[Stop]:
    loop = asyncio.get_running_loop()
    stop = Stop()

    def ask() -> None:
        say("stopping; once more leaves running requests" if not stop.soon.is_set() else "leaving")
        stop.ask()

    for number in _SIGNALS:
        loop.add_signal_handler(number, ask)
    try:
        yield stop
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
