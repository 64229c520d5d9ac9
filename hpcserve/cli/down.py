"""`hpcserve down`: stop a deployment, from any machine that sees its state directory."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import click

from hpcserve.cli import receipt as receipts
from hpcserve.cli.backend import Backend, backend, changes
from hpcserve.cli.deployment import find, name_option

if TYPE_CHECKING:
    from hpcserve.receipt import Receipt
    from hpcserve.state import StateDir
    from hpcserve.types import Status


@click.command("down")
@name_option
@click.option("--force", is_flag=True, help="Do not wait for running requests.")
@click.option("--json", "as_json", is_flag=True, help="Print its last status as one JSON object.")
@click.pass_context
def command(ctx: click.Context, name: str | None, force: bool, as_json: bool) -> None:
    """Stop a deployment; return when nothing of it is left.

    Running requests may finish first, for at most frontend.drain_timeout_s. Works with a dead head, too. Then it prints
    what was used, as `hpcserve receipt` does. The exit code is 5 where nothing of it runs.
    """
    state = find(name)
    status, receipt = asyncio.run(_down(backend(ctx), state, force=force))
    if as_json and status is not None:
        from hpcserve.cli.summary import as_dict

        click.echo(json.dumps(as_dict(state, status) | {"receipt": receipt and receipts.as_dict(receipt)}))
    elif not as_json:
        click.echo(f"{state.name} is down")
        for line in receipts.lines(receipt) if receipt and receipt.num_workers else ():
            click.echo(line)


async def _down(serve: Backend, state: StateDir, *, force: bool) -> tuple[Status | None, Receipt | None]:
    """Return the last status, and the receipt if there is one: that it is down is more important."""
    busiest: list[Status] = []
    status = await _stop(serve, state, busiest, force=force)
    return status, await receipts.try_to_make(state, busiest[-1] if busiest else None)


async def _stop(serve: Backend, state: StateDir, busiest: list[Status], *, force: bool) -> Status | None:
    """Show it going down; return the last status, and put those with traffic into `busiest`."""
    from hpcserve.cli.views import Screen

    status: Status | None = None
    async with changes(serve.stop(state, force=force)) as statuses:
        with Screen(state.logs).table() as view:
            async for status in statuses:
                view.update(status)
                busiest += [status] if status.traffic is not None else []
    return status
