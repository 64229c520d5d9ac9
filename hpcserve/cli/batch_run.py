"""What `hpcserve batch run` puts together: the deployment's endpoint, the plan, the signals, the progress."""

from __future__ import annotations

import asyncio
import resource
import signal
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
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
from hpcserve.batch.text_lengths import counted_texts
from hpcserve.cli.batch_target import Target, find_target, gpus_a_worker, target_of
from hpcserve.cli.interrupts import Interrupted
from hpcserve.cli.options import first_given
from hpcserve.cli.ranks import Lead, leading
from hpcserve.cli.standalone import Standalone, own_deployment
from hpcserve.cli.streams import LastingStderr, say
from hpcserve.errors import ConfigError

if TYPE_CHECKING:
    from hpcserve.cli.batch import Given
    from hpcserve.config import Config
    from hpcserve.state import StateDir
    from hpcserve.types import Status

_OTHER_FILES = 256
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    is_complete: bool
    tally: Tally
    paths: Paths
    gpu_s: float | None  # seconds of all GPUs together, where they are known
    is_requeued: bool = False  # it is not complete because it was asked to end and to be started again


@dataclass
class _Ending:
    """How a run is asked to end, and why."""

    stop: Stop = field(default_factory=Stop)
    is_requeued: bool = False

    def interrupt(self) -> None:
        """Take no more requests; a second time: leave those that run."""
        say("stopping; once more leaves running requests" if not self.stop.soon.is_set() else "leaving")
        self.stop.ask()

    def requeue(self, *_: object) -> None:
        """Take no more requests: the job ends soon, and another one goes on. Only the first time counts."""
        if not self.is_requeued:
            self.is_requeued = True
            say("stopping, to be started again")
            self.stop.ask()


def run_batch(ctx: click.Context, given: Given) -> Outcome:
    """Run until all is done or a signal comes. Raises `ConfigError`, `DeploymentError` or `HpcserveError`."""
    ending = _Ending()
    before = signal.signal(signal.SIGUSR1, ending.requeue)
    try:
        if given["standalone"]:
            own = own_deployment(ctx, given)
            with leading(own.config) as lead:
                return _checked(given, own.config, own.models(), partial(_run_standalone, own, lead, given, ending))
        if (flag := first_given(ctx)) is not None:
            raise ConfigError(f"{flag} is for --standalone; a deployment that runs has its configuration")
        target, models = asyncio.run(_find_target(ctx, given))
        config = target.state.read_config() if target.state is not None else None
        return _checked(given, config, models, partial(_run_on, target, given, ending))
    finally:
        signal.signal(signal.SIGUSR1, before)


def _checked(
    given: Given,
    config: Config | None,
    models: dict[str, int | None],
    run: Callable[[Work], Coroutine[Any, Any, Outcome]],
) -> Outcome:
    """Check the input, or what is left of it, and run that."""
    source = open_input(given)
    with ExitStack() as stack:
        plan = Plan(
            source,
            make_reader(source, given, list(models)),
            Paths(given["output"]),
            is_fresh=given["fresh"],
            tries_failed=given["retry_failed"],
            too_long=stack.enter_context(counted_texts(config, models)),
            is_ordered=given["order"] == "prefix",
        )
        work = stack.enter_context(
            plan.opened(models)
        )  # not on a loop: it may take a minute, and Ctrl-C ends it at once
        if work.warning:
            say(f"warning: {work.warning}")
        if work.tally.num_before:
            say(f"going on: {work.tally.num_before:,} of {work.tally.num_requests:,} requests are finished")
        return uvloop.run(run(work))


async def _run_standalone(own: Standalone, lead: Lead, given: Given, ending: _Ending, work: Work) -> Outcome:
    """Bring engines up, run, and take them down."""
    paths, num_gpus = work.plan.paths, 0

    async def serve(state: StateDir, status: Status) -> bool:
        nonlocal num_gpus
        num_gpus = gpus_a_worker(state.read_config()) or 0
        return await _run(work, target_of(state, status), given, ending)

    if work.tally.num_finished == work.tally.num_requests:
        return Outcome(True, work.tally, paths, None)
    is_complete, lead.has_head = False, True
    with suppress(Interrupted):
        is_complete = await own.run(serve)
    is_requeued = ending.is_requeued or own.interrupts.last is signal.SIGUSR1
    gpu_s = num_gpus * own.engine_time.total_s(time.monotonic())
    return Outcome(is_complete, work.tally, paths, gpu_s or None, is_requeued and not is_complete)


async def _run_on(target: Target, given: Given, ending: _Ending, work: Work) -> Outcome:
    is_complete = await _run(work, target, given, ending)
    gpu_s = target.num_gpus * work.tally.elapsed_s if target.num_gpus else None
    return Outcome(is_complete, work.tally, work.plan.paths, gpu_s, ending.is_requeued and not is_complete)


async def _run(work: Work, target: Target, given: Given, ending: _Ending) -> bool:
    patience = Patience(attempts=given["attempts"], silence_s=given["patience"])
    target = target if given["concurrency"] is None else target.narrowed(given["concurrency"])
    async with target.opened(given["over"], patience, given["priority"]) as service:
        if service.unit_size == 1:
            _allow_connections(target.window)
        with _on_signals(ending):
            showing = asyncio.create_task(show(work.tally, Console(file=cast("IO[str]", LastingStderr())), say))
            try:
                num_units = max(1, target.window // service.unit_size)
                return await Batch(work, service, ending.stop, window=num_units, grace_s=given["grace"]).run()
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
        "model": None if given.get("standalone", True) else given["model"],  # that is the model's directory there
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
def _on_signals(ending: _Ending) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, ending.interrupt)
    loop.add_signal_handler(signal.SIGUSR1, ending.requeue)
    try:
        yield
    finally:
        for number in (*_SIGNALS, signal.SIGUSR1):
            loop.remove_signal_handler(number)
