"""`hpcserve config`: what the configuration comes to, and what may be in it. Starts nothing."""

from __future__ import annotations

import json

import click

from hpcserve.cli.options import config_options, load_config


@click.group("config")
def command() -> None:
    """Show the configuration, its schema, or which file is read.

    Flags win over --set, over HPCSERVE_SECTION__KEY variables, over the YAML file, over the defaults.
    """


@command.command("show")
@config_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON: `config`, and `origins` by dotted key.")
@click.pass_context
def show(ctx: click.Context, as_json: bool) -> None:
    """Print every value and where it came from, as a YAML file that gives the same configuration again.

    Takes the options of `hpcserve up` and prints what `up` would use; standard error says what that still lacks.
    """
    from hpcserve.config.show import as_json as to_json
    from hpcserve.config.show import as_yaml

    loaded = load_config(ctx, allow_contradictions=True)
    click.echo(json.dumps(to_json(loaded), indent=2) if as_json else as_yaml(loaded), nl=as_json)
    for line in loaded.contradictions:
        click.echo(f"note: up would refuse this: {line}", err=True)


@command.command("schema")
def schema() -> None:
    """Print the JSON schema, for editors that check YAML files."""
    from hpcserve.config import Config

    click.echo(json.dumps(Config.model_json_schema(), indent=2))


@command.command("path")
def path() -> None:
    """Print the file that is read without --config; nothing where there is none."""
    from hpcserve.config.load import default_file, find_file

    file = find_file()
    if file is None:
        click.echo(f"no file is read; {default_file()} would be, or what $HPCSERVE_CONFIG names", err=True)
    else:
        click.echo(file)
