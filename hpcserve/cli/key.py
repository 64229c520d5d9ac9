"""`hpcserve key`: the bearer key of a deployment's API."""

from __future__ import annotations

import click

from hpcserve.cli.deployment import find, name_option


@click.command("key")
@name_option
@click.option("--path", "as_path", is_flag=True, help="Print where the key is instead.")
def command(name: str | None, as_path: bool) -> None:
    """Print the API key of a deployment.

    Clients send it as `Authorization: Bearer KEY`; with the openai package it is `api_key`.
    """
    state = find(name)
    key = state.read_key()
    click.echo(state.key_file if as_path else key)
