"""`hpcserve up`: parse, load the configuration, and run a session."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from hpcserve.cli.backend import Backend, backend
from hpcserve.cli.options import config_options, load_config
from hpcserve.cli.streams import give_up, say

if TYPE_CHECKING:
    from pathlib import Path

    from hpcserve.config import Config
    from hpcserve.state import StateDir
    from hpcserve.types import Status


@click.command("up")
@config_options
@click.option("--dry-run", is_flag=True, help="Print every job script; submit nothing.")
@click.option("--detach", is_flag=True, help="Return when the endpoint answers, and leave it running.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the banner.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="How long it may take until the endpoint answers.  [default: 600; none on Slurm without --detach]",
)
@click.pass_context
def command(ctx: click.Context, dry_run: bool, detach: bool, as_json: bool, timeout_s: float | None) -> None:
    """Start a deployment and show its endpoint.

    Stays attached: Ctrl-C (or SIGTERM, or SIGHUP) lets running requests finish and stops everything, a second one does
    not wait for them. The exit code is 0 when it was stopped in good order after it had served.
    """
    config = load_config(ctx).config
    serve = backend(ctx)
    if dry_run:
        _print_jobs(serve, config, as_json=as_json)
        return

    def announce(state: StateDir, status: Status) -> None:
        _announce(state, status, _key_file(state, status), as_json=as_json)

    import asyncio

    from hpcserve.cli.session import Session

    async def run() -> int:
        session = Session(serve=serve, config=config, attached=not detach, timeout_s=timeout_s, announce=announce)
        return await session.run()

    ctx.exit(asyncio.run(run()))


def _print_jobs(serve: Backend, config: Config, *, as_json: bool) -> None:
    jobs = serve.render_jobs(config)
    if as_json:
        click.echo(json.dumps([{"worker": worker, "script": script} for worker, script in jobs]))
        return
    for worker, script in jobs:
        click.echo(f"# ---- {worker}\n{script.rstrip()}\n")


def _announce(state: StateDir, status: Status, key_file: Path | None, *, as_json: bool) -> None:
    from hpcserve.cli.banner import banner
    from hpcserve.cli.summary import as_dict

    try:
        click.echo(json.dumps(as_dict(state, status)) if as_json else banner(status, key_file))
    except BrokenPipeError:  # the deployment serves all the same
        give_up(sys.stdout)


def _key_file(state: StateDir, status: Status) -> Path | None:
    """Return the file with the key that clients need, or None where they need none; warn where they should."""
    from hpcserve.config.models import SecurityConfig
    from hpcserve.frontend.auth import auth_required

    config = state.read_config()
    if auth_required(config, status.cluster, config.frontend.host):
        return state.key_file
    careful = config.model_copy(update={"security": SecurityConfig()})
    if auth_required(careful, status.cluster, config.frontend.host):
        say(f"warning: no key is asked for: whoever reaches {status.endpoint} can use it")
    return None
