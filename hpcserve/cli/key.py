"""`hpcserve key`: the bearer key of a deployment's API."""

from __future__ import annotations

import click

from hpcserve.cli.deployment import find, name_option


@click.command("key")
@name_option
@click.option("--path", "what", flag_value="path", help="Print where the key is instead.")
@click.option("--header", "what", flag_value="header", help="Print where it is as an HTTP header: curl -H @FILE.")
def command(name: str | None, what: str | None) -> None:
    """Print the API key of a deployment.

    Clients send it as `Authorization: Bearer KEY`; with the openai package it is `api_key`. On a command line everybody
    on the machine can read it: give curl the file, as in `curl -H @"$(hpcserve key --header)"`.
    """
    state = find(name)
    key = state.read_key()
    click.echo({"path": state.key_file, "header": state.header_file}.get(what or "", key))
