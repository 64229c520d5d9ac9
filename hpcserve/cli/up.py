"""`hpcserve up`: parse, load the configuration, and run a session."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from hpcserve.cli.backend import Backend, backend
from hpcserve.cli.options import config_options, given_keys, load_config
from hpcserve.cli.ranks import be_rank, leading
from hpcserve.cli.streams import give_up, say

if TYPE_CHECKING:
    from hpcserve.config import Config
    from hpcserve.state import StateDir
    from hpcserve.types import Status


@click.command("up")
@config_options
@click.option("--dry-run", is_flag=True, help="Print every job script, and the start and price; submit nothing.")
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
    loaded = load_config(ctx, allow_contradictions=not dry_run)  # they do not matter for what runs already
    config = loaded.config
    serve = backend(ctx)
    if dry_run:
        _print_jobs(serve, config, as_json=as_json)
        return
    if (code := be_rank(config)) is not None:
        ctx.exit(code)

    def announce(state: StateDir, status: Status) -> None:
        _announce(state, status, needs_key=_needs_key(state, status), as_json=as_json)

    import asyncio

    from hpcserve.cli.session import Session

    busiest: list[Status] = []

    def keep(status: Status) -> None:
        if status.traffic is not None:
            busiest[:] = [status]

    async def run() -> int:
        session = Session(
            serve=serve,
            config=config,
            attached=not detach,
            timeout_s=timeout_s,
            announce=announce,
            given=given_keys(ctx, loaded),
            wrong=loaded.contradictions,
            on_status=keep,
        )
        return await session.run()

    with leading(config) as lead:
        lead.has_head = True
        code = asyncio.run(run())
    if not detach:
        asyncio.run(_say_receipt(config.name, busiest[-1] if busiest else None))
    ctx.exit(code)


async def _say_receipt(name: str, seen: Status | None) -> None:
    """Say what was used, if it is over and anything was."""
    from hpcserve.cli.receipt import lines, try_to_make
    from hpcserve.state import StateDir

    receipt = await try_to_make(StateDir.of(name), seen)
    for line in lines(receipt) if receipt is not None and receipt.is_final and receipt.num_workers else ():
        say(line)


def _print_jobs(serve: Backend, config: Config, *, as_json: bool) -> None:
    jobs = serve.render_jobs(config)
    if as_json:
        click.echo(json.dumps([{"worker": worker, "script": script} for worker, script in jobs]))
    else:
        for worker, script in jobs:
            click.echo(f"# ---- {worker}\n{script.rstrip()}\n")
    _say_estimate(config, as_json=as_json)


def _say_estimate(config: Config, *, as_json: bool) -> None:
    """Say when it would start and what it would cost; on standard error, as the scripts are there to be piped on."""
    import asyncio

    from hpcserve.doctor.estimate import estimate

    found = asyncio.run(estimate(config))
    if as_json:
        say(json.dumps(found.as_dict()))
        return
    for word, text in found.lines():
        say(f"{word}: {text}")


def _announce(state: StateDir, status: Status, *, needs_key: bool, as_json: bool) -> None:
    from hpcserve.cli.summary import as_dict

    try:
        click.echo(json.dumps(as_dict(state, status)) if as_json else _banner(state, status, needs_key))
    except BrokenPipeError:  # the deployment serves all the same
        give_up(sys.stdout)


def _banner(state: StateDir, status: Status, needs_key: bool) -> str:
    from hpcserve.cli.banner import banner
    from hpcserve.frontend.server.certificate import is_self_signed

    cert = state.read_config().frontend.tls_cert
    trusted = cert if cert is not None and is_self_signed(cert) else None
    return banner(status, state if needs_key else None, trusted)


def _needs_key(state: StateDir, status: Status) -> bool:
    """Return whether clients need a key; warn where they should and do not."""
    from hpcserve.config.models import SecurityConfig
    from hpcserve.frontend.exposure import auth_required

    config = state.read_config()
    if auth_required(config, status.cluster, config.frontend.host):
        return True
    careful = config.model_copy(update={"security": SecurityConfig()})
    if auth_required(careful, status.cluster, config.frontend.host):
        say(f"warning: no key is asked for: whoever reaches {status.endpoint or status.unix_socket} can use it")
    return False
