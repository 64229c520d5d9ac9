"""What `hpcserve batch run` puts together: the deployment's endpoint, the plan, the signals, the progress."""

from __future__ import annotations

import asyncio
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, cast

import click
import uvloop
from rich.console import Console

from hpcserve.batch import (
    Batch,
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
from hpcserve.batch.shard import Shard, ShardedSource
from hpcserve.cli.batch_target import Target, find_target
from hpcserve.cli.streams import LastingStderr, say
from hpcserve.errors import ConfigError

if TYPE_CHECKING:
    from hpcserve.cli.batch import Given

_OTHER_FILES = 256
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    is_complete: bool
    tally: Tally
    paths: Paths
    gpus: int | None


def run_batch(ctx: click.Context, given: Given) -> Outcome:
    """Run until all is done or a signal comes. Raises `ConfigError`, `DeploymentError` or `HpcserveError`."""
    paths = Paths(given["output"])
    source = open_input(given)
    target, models = asyncio.run(_find_target(ctx, given))
    plan = Plan(source, make_reader(source, given, list(models)), paths, is_fresh=given["fresh"])
    with plan.opened(models) as work:  # not on a loop: it may take a minute, and Ctrl-C ends it at once
        if work.warning:
            say(f"warning: {work.warning}")
        if work.tally.num_before:
            say(f"going on: {work.tally.num_before:,} of {work.tally.num_requests:,} requests are finished")
        is_complete = uvloop.run(_run(work, target, given))
        return Outcome(is_complete, work.tally, paths, target.gpus)


async def _run(work: Work, target: Target, given: Given) -> bool:
    patience = Patience(attempts=given["attempts"], silence_s=given["patience"])
    target = target if given["concurrency"] is None else target.narrowed(given["concurrency"])
    async with target.opened(given["over"], patience, given["priority"]) as service:
        if service.unit_size == 1:
            _allow_connections(target.window)
        with _stop_on_signals() as stop:
            showing = asyncio.create_task(show(work.tally, Console(file=cast("IO[str]", LastingStderr())), say))
            try:
                num_units = max(1, target.window // service.unit_size)
                return await Batch(work, service, stop, window=num_units, grace_s=given["grace"]).run()
            finally:
                showing.cancel()
                await asyncio.gather(showing, return_exceptions=True)


def open_input(given: Given) -> Source:
    """Return the input, or the part of it that is to be done. Raises `ConfigError`."""
    shard = Shard.parse(given["shard"]) if given["shard"] is not None else None
    source = open_source(given["input"], prompt_column=given["prompt_column"], id_column=given["id_column"])
    return source if shard is None else ShardedSource(source, shard)


def make_reader(source: Source, given: Given, models: list[str]) -> LineReader:
    """Return what lines mean by the options. Raises `ConfigError` for those that do not go together."""
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


async def _find_target(ctx: click.Context, given: Given) -> tuple[Target, dict[str, int | None]]:
    target = await find_target(ctx, given)
    return target, await target.models()


def _allow_connections(num: int) -> None:
    """Raise the limit of open files to what so many connections need, as far as this user may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = num + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
        )


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
