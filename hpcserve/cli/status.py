"""`hpcserve status`: one deployment in full, or all of them in a list."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING

import click

from hpcserve.cli.backend import Backend, backend, changes
from hpcserve.cli.deployment import find, name_option
from hpcserve.errors import DeploymentError

if TYPE_CHECKING:
    from hpcserve.state import StateDir
    from hpcserve.types import Status


_PIPED_WIDTH = 200  # columns; nothing is to be cut off where there is no window to fit


@click.command("status")
@name_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; without --name a list of them.")
@click.option("--watch", is_flag=True, help="Keep showing it until it ends.")
@click.pass_context
def command(ctx: click.Context, name: str | None, as_json: bool, watch: bool) -> None:
    """Show a deployment, its workers and their load.

    Without --name it lists the deployments where there are several. The exit code is 5 for a deployment that does not
    run.
    """
    from hpcserve.state import StateDir

    serve = backend(ctx)
    states = StateDir.all() if name is None else [find(name)]
    if watch:
        asyncio.run(_watch(serve, find(name), as_json=as_json))
        return
    statuses = asyncio.run(_fetch(serve, states))
    if as_json:
        from hpcserve.cli.summary import as_dict

        found = [as_dict(state, status) for state, status in zip(states, statuses, strict=True)]
        click.echo(json.dumps(found if name is None else found[0]))
    elif statuses:
        _print_pages(statuses)
    else:
        find(None)  # there are none: raises, saying so
    if len(statuses) == 1 and not _runs(statuses[0]):
        ctx.exit(DeploymentError.exit_code)


async def _fetch(serve: Backend, states: list[StateDir]) -> list[Status]:
    return await asyncio.gather(*(serve.fetch_status(state) for state in states))


async def _watch(serve: Backend, state: StateDir, *, as_json: bool) -> None:
    from hpcserve.cli.summary import as_dict
    from hpcserve.cli.views import Screen

    async with changes(serve.watch(state)) as statuses:
        if as_json:
            async for status in statuses:
                click.echo(json.dumps(as_dict(state, status)))
            return
        with Screen(state.logs).table() as view:
            async for status in statuses:
                view.update(status)


def _print_pages(statuses: list[Status]) -> None:
    from rich.console import Console

    from hpcserve.cli.status_page import status_list, status_page

    page = status_page(statuses[0]) if len(statuses) == 1 else status_list(statuses)
    Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH).print(page)


def _runs(status: Status) -> bool:
    from hpcserve.types import Phase

    return status.phase not in (Phase.STOPPED, Phase.FAILED)
