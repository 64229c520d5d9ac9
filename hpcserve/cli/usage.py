"""`hpcserve usage`: what each tenant of a deployment has used, read from its state directory."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from hpcserve.cli.columns import print_columns
from hpcserve.cli.deployment import find, name_option
from hpcserve.cli.expiry import as_day

if TYPE_CHECKING:
    from hpcserve.state import StateDir
    from hpcserve.usage import Usage

_COLUMNS = ("NAME", "REQUESTS", "RATE-LIMITED", "PROMPT", "CACHED", "GENERATED", "FIRST", "LAST")


@click.command("usage")
@name_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list; times are Unix times.")
def command(name: str | None, as_json: bool) -> None:
    """Print what each tenant has used, in requests and tokens.

    Counted since the deployment was first started, over restarts, by the names of keys; `default` is the deployment's
    own. While it runs the numbers are up to 5 seconds old. Where no key is asked for, nothing is counted.
    """
    used = _used(find(name))
    if as_json:
        click.echo(json.dumps([{"name": tenant, **_as_dict(usage)} for tenant, usage in used.items()]))
        return
    print_columns([_COLUMNS, *(_row(tenant, usage) for tenant, usage in used.items())])


def _used(state: StateDir) -> dict[str, Usage]:
    """Return the usage of every key there is, used or not, and of those there were."""
    from hpcserve.keys import KeyFile
    from hpcserve.usage import Usage, UsageFile

    used = UsageFile(state).read()
    names = [record.name for record in KeyFile(state).read()]
    return {name: used.get(name, Usage()) for name in dict.fromkeys((*sorted(used), *names))}


def _as_dict(usage: Usage) -> dict[str, Any]:
    return {name: getattr(usage, name) for name in usage.__struct_fields__}


def _row(tenant: str, usage: Usage) -> tuple[str, ...]:
    counts = (usage.requests, usage.rate_limited, usage.prompt_tokens, usage.cached_tokens, usage.generated_tokens)
    times = ("never" if each is None else as_day(each) for each in (usage.first_used, usage.last_used))
    return (tenant, *map(str, counts), *times)
