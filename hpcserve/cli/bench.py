"""`hpcserve bench`: one engine in this process, measured and stopped. `hpcserve bench kv` is in `bench_kv`."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from hpcserve.cli.group import INTERRUPTED
from hpcserve.cli.options import engine_options, load_config
from hpcserve.cli.streams import say

if TYPE_CHECKING:
    from hpcserve.bench import BenchResult, Effort
    from hpcserve.config import Config

_TOKENS = click.IntRange(1)
_KILL_TIMEOUT_S = 5.0


class _BenchGroup(click.Group):
    """One more command, which is imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return ["kv"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name != "kv":
            return None
        from hpcserve.cli.bench_kv import command as kv

        return kv


@click.group("bench", cls=_BenchGroup, invoke_without_command=True)
@engine_options
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default="timing.json",
    show_default=True,
    metavar="FILE",
    help="Where to write the model.",
)
@click.option("--max-prompt", type=_TOKENS, metavar="N", help="Longest prompt.  [default: what fits into a step]")
@click.option("--context", type=_TOKENS, metavar="N", help="Prompt of what decodes.  [default: short and long ones]")
@click.option("--quick", is_flag=True, help="Measure less: seconds instead of a minute or two, and less exact.")
@click.option("--json", "as_json", is_flag=True, help="Print what is written, as JSON.")
@click.pass_context
def command(
    ctx: click.Context, output: Path, max_prompt: int | None, context: int | None, quick: bool, as_json: bool
) -> None:
    """Measure an engine and fit the timing model that simulate reads.

    Starts one engine here, as a worker would, with the same configuration. Times its steps over prompts of several
    lengths, and over batches that read more and more of the KV cache. The file goes to `hpcserve simulate --timing`.
    """
    if ctx.invoked_subcommand is not None:
        return
    from hpcserve.bench import Effort
    from hpcserve.engine.mock.timing_file import write_timing
    from hpcserve.errors import ConfigError

    config = load_config(ctx).config
    if not os.access(output if output.exists() else output.absolute().parent, os.W_OK):
        raise ConfigError(f"cannot write {output}; name another file with -o")  # before the work, not after it
    result = _measure(config, Effort(max_prompt=max_prompt, context=context, quick=quick))
    write_timing(output, result.to_file())
    if as_json:
        click.echo(output.read_text(), nl=False)
    else:
        from hpcserve.bench.table import print_result

        print_result(result)
    for warning in result.warnings:
        say(f"warning: {warning}")
    say(f"written: {output}; hpcserve simulate --timing {output} --trace ...")


def _measure(config: Config, effort: Effort) -> BenchResult:
    import uvloop

    from hpcserve.bench import bench
    from hpcserve.cli.interrupts import Interrupted, Interrupts
    from hpcserve.observability.logging import configure_logging

    async def run() -> BenchResult:
        with Interrupts() as interrupts:
            return await interrupts.during(bench(config, effort, say))

    configure_logging(config.log_level)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # its warnings are for an agent's log, not for a terminal
    try:
        return uvloop.run(run())
    except Interrupted:
        say("interrupted")
        _leave()


def _leave() -> NoReturn:
    """End at once, with all processes that were started here.

    An engine that was measured is stopped by now. One that was still loading cannot be told to: a thread of ours, and
    with vLLM's own processes those too, would go on for as long as loading takes.
    """
    import psutil

    children = psutil.Process().children(recursive=True)
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(children, timeout=_KILL_TIMEOUT_S)
    sys.stdout.flush()
    os._exit(INTERRUPTED)
