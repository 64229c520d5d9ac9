"""`hpcserve batch`: offline work through a deployment that runs. What the options mean; `hpcserve.batch` does it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, Unpack

import click

from hpcserve.cli import batch_merge
from hpcserve.cli.batch_submit import make_submit
from hpcserve.cli.deployment import name_option
from hpcserve.cli.group import INTERRUPTED
from hpcserve.cli.options import standalone_options

if TYPE_CHECKING:
    from hpcserve.cli.batch_run import Outcome

SOME_FAILED = 3
TEMPORARY = 75  # EX_TEMPFAIL of sysexits.h: asked by SIGUSR1 to end, and to be started again
_Command = TypeVar("_Command", bound=Callable[..., Any])
_FILE = click.Path(path_type=Path, dir_okay=False)
_COUNT = click.IntRange(1)
_POSITIVE = click.FloatRange(0, min_open=True)
_INT32 = click.IntRange(-(2**31 - 1), 2**31 - 1)


class Given(TypedDict):
    """The options, by name."""

    input: Path
    output: Path
    name: str | None
    endpoint: str | None
    key_file: Path | None
    over: Literal["dask", "http"] | None
    standalone: bool
    prompts: bool
    prompt_column: str | None
    id_column: str | None
    shard: str | None
    model: str | None
    system: str | None
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    seed: int | None
    order: Literal["prefix", "input"]
    concurrency: int | None
    attempts: int
    patience: float
    priority: int
    grace: float
    fresh: bool
    retry_failed: bool
    as_json: bool


@click.group("batch")
def command() -> None:
    """Send a file of requests through a deployment and write the answers to another.

    What is finished is kept in a ledger beside the output: the same command goes on where it was, however it ended.
    """


def _option(flags: str, text: str, **settings: Any) -> Callable[[_Command], _Command]:
    """Return an option; its default is shown if it has one."""
    is_shown = settings.get("default") is not None and not settings.get("is_flag")
    return click.option(*flags.split(","), help=text, show_default=is_shown, **settings)


@command.command("run")
@click.argument("input", type=_FILE, metavar="IN")
@_option(
    "-o,--output", "Answers; OUT.errors.jsonl and OUT.ledger come beside.", type=_FILE, required=True, metavar="OUT"
)
@name_option
@_option("--endpoint", "Of a deployment that is not found by --name; ends in /v1.", metavar="URL")
@_option("--key-file", "With its key; with --endpoint.", type=_FILE, metavar="FILE")
@_option(
    "--over",
    "How it is reached.  [default: dask if it is your own, else http]",
    type=click.Choice(("dask", "http")),
)
@_option("--standalone", "Bring up a deployment for this, and take it down; --model is its DIR.", is_flag=True)
@_option("--prompts", "IN has one prompt a line, not a request.", is_flag=True)
@_option("--prompt-column", "Of a Parquet file.  [default: prompt]", metavar="NAME")
@_option("--id-column", "Of a Parquet file, with custom ids.  [default: the row's number]", metavar="NAME")
@_option("--shard", "Do part I of N of the requests only, counted from 0.", metavar="I/N")
@_option("--model", "For prompts.  [default: the one that is served]", metavar="NAME")
@_option("--system", "For prompts: the system's message before each.", metavar="TEXT")
@_option("--max-tokens", "For prompts: longest answer.  [default: what fits]", type=_COUNT, metavar="N")
@_option("--temperature", "For prompts.", type=click.FloatRange(0, 100), metavar="T")
@_option("--top-p", "For prompts.", type=click.FloatRange(0, 1, min_open=True), metavar="P")
@_option("--seed", "For prompts.", type=int, metavar="N")
@_option(
    "--order",
    "prefix: requests that begin alike run together; input: as they come.",
    type=click.Choice(("prefix", "input")),
    default="prefix",
)
@_option("--concurrency", "Requests under way at once.  [default: by the workers, or 256]", type=_COUNT, metavar="N")
@_option(
    "--attempts", "For a request that fails; one with a 4xx is not tried again.", type=_COUNT, default=5, metavar="N"
)
@_option("--patience", "Seconds without any answer before giving up.", type=_POSITIVE, default=600.0, metavar="S")
@_option("--priority", "Of requests that have none; lower runs first, online is 0.", type=_INT32, default=100)
@_option("--grace", "Seconds that running requests get after Ctrl-C.", type=_POSITIVE, default=30.0, metavar="S")
@_option("--fresh/--resume", "Start over, over results that are there, or go on.  [default: resume]", default=False)
@_option("--retry-failed", "Try again what failed in an earlier run; the errors file begins anew.", is_flag=True)
@_option("--json,as_json", "Print the summary as JSON.", is_flag=True)
@standalone_options
@click.pass_context
def run(ctx: click.Context, **given: Unpack[Given]) -> None:
    """Send every request in IN and write the answers to OUT, as they come.

    IN has lines as OpenAI's Batch API wants them (custom_id, method, url, body), or prompts, or is a Parquet file with
    a column of prompts. All of it is checked first. Failed requests go to OUT.errors.jsonl; the exit code is 3 then.
    After Ctrl-C, a crash, or the end of the deployment the same command goes on; nothing is lost or done twice.
    """
    from hpcserve.cli.batch_run import run_batch

    outcome = run_batch(ctx, given)
    _report(outcome, given)
    if not outcome.is_complete:
        ctx.exit(TEMPORARY if outcome.is_requeued else INTERRUPTED)
    if outcome.tally.num_failed:
        ctx.exit(SOME_FAILED)


def _report(outcome: Outcome, given: Given) -> None:
    from hpcserve.batch.progress import summary_lines
    from hpcserve.cli.streams import say

    if given["as_json"]:
        click.echo(json.dumps({**outcome.tally.summary(outcome.gpu_s), "complete": outcome.is_complete}))
    else:
        for line in summary_lines(outcome.tally, outcome.gpu_s):
            say(line)
    if not outcome.is_complete:
        say(f"stopped; the same command goes on: what is finished is in {outcome.paths.ledger}")
    elif outcome.tally.num_failed:
        say(f"failed requests are in {outcome.paths.errors}")


command.add_command(make_submit(run))
command.add_command(batch_merge.command)
