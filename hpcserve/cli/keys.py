"""`hpcserve keys`: one API key a tenant of a deployment, with its limits. Running frontends notice within a second."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from hpcserve.cli.columns import print_columns
from hpcserve.cli.deployment import find, name_option
from hpcserve.cli.expiry import as_day, parse_expiry

if TYPE_CHECKING:
    from hpcserve.keys import KeyRecord
    from hpcserve.state import StateDir

_AT_LEAST_ONE = click.IntRange(min=1)
_COLUMNS: tuple[str, ...] = (
    "NAME",
    "CREATED",
    "EXPIRES",
    "PRIORITY",
    "REQUESTS/MIN",
    "TOKENS/MIN",
    "CONCURRENT",
    "MODELS",
)
_INT32 = click.IntRange(-(2**31 - 1), 2**31 - 1)


@click.group("keys")
def command() -> None:
    """Add, list and revoke the API keys of tenants.

    A tenant is who you give a key to. Its cached prompts are shared with no other tenant, and its limits and fair share
    are its own. The deployment's own key (`hpcserve key`) stays valid beside them, without limits.
    """


@command.command("add")
@click.argument("tenant", metavar="NAME")
@name_option
@click.option("--expires", metavar="WHEN", help="30d, 12h, 90m, or the last day, such as 2027-03-31.  [default: never]")
@click.option("--priority", type=_INT32, default=0, show_default=True, help="Class; lower runs first.")
@click.option("--requests-per-minute", type=_AT_LEAST_ONE, metavar="N", help="More get a 429.  [default: no limit]")
@click.option("--tokens-per-minute", type=_AT_LEAST_ONE, metavar="N", help="Of prompts and answers together.")
@click.option("--max-concurrent", type=_AT_LEAST_ONE, metavar="N", help="Requests under way at once.")
@click.option("--model", "models", multiple=True, metavar="NAME", help="The only one it may use; repeatable.")
def add(
    tenant: str,
    name: str | None,
    expires: str | None,
    priority: int,
    requests_per_minute: int | None,
    tokens_per_minute: int | None,
    max_concurrent: int | None,
    models: tuple[str, ...],
) -> None:
    """Make and print the key of tenant NAME.

    It is printed this once: only its digest is stored. It is all of standard output, so that a file can take it:
    (umask 077; hpcserve keys add alice > alice.key).
    """
    from hpcserve.keys import KeyFile, Limits

    state, now = find(name), time.time()
    limits = Limits(
        requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute, max_concurrent=max_concurrent
    )
    until = parse_expiry(expires, now) if expires is not None else None
    click.echo(KeyFile(state).add(tenant, now=now, expires=until, priority=priority, limits=limits, models=models))
    click.echo(f"the key of {tenant!r}, not to be shown again; it is valid within a second", err=True)
    _note_open_door(state)
    _note_other_models(state, models)


@command.command("list")
@name_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list; times are Unix times.")
def list_keys(name: str | None, as_json: bool) -> None:
    """Print tenants and their limits.

    Their keys cannot be printed: they are nowhere.
    """
    from hpcserve.keys import KeyFile

    records, now = KeyFile(find(name)).read(), time.time()
    if as_json:
        click.echo(json.dumps([_as_dict(each, now) for each in records]))
        return
    print_columns([_COLUMNS, *(_row(each, now) for each in records)])


def _complete_tenant(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from hpcserve.errors import HpcserveError
    from hpcserve.keys import KeyFile

    try:
        records: Sequence[KeyRecord] = KeyFile(find(ctx.params.get("name"))).read()
    except HpcserveError:
        return []
    return [each.name for each in records if each.name.startswith(incomplete)]


@command.command("revoke")
@click.argument("tenant", metavar="NAME", shell_complete=_complete_tenant)
@name_option
def revoke(tenant: str, name: str | None) -> None:
    """End the key of tenant NAME.

    What it runs already may finish.
    """
    from hpcserve.keys import KeyFile

    KeyFile(find(name)).revoke(tenant)
    click.echo(f"the key of {tenant!r} is revoked; its new requests are refused within a second")


def _as_dict(record: KeyRecord, now: float) -> dict[str, Any]:
    return {
        "name": record.name,
        "created": record.created,
        "expires": record.expires,
        "expired": record.is_expired(now),
        "priority": record.priority,
        "requests_per_minute": record.limits.requests_per_minute,
        "tokens_per_minute": record.limits.tokens_per_minute,
        "max_concurrent": record.limits.max_concurrent,
        "models": None if record.models is None else list(record.models),
    }


def _row(record: KeyRecord, now: float) -> tuple[str, ...]:
    expires = "never" if record.expires is None else as_day(record.expires)
    limits = (record.limits.requests_per_minute, record.limits.tokens_per_minute, record.limits.max_concurrent)
    return (
        record.name,
        as_day(record.created),
        expires + (" (expired)" if record.is_expired(now) else ""),
        str(record.priority),
        *("-" if limit is None else str(limit) for limit in limits),
        "all" if record.models is None else ", ".join(record.models),
    )


def _note_open_door(state: StateDir) -> None:
    """Say so where no key is asked for: then keys keep nobody out, and nobody apart."""
    from hpcserve.frontend.exposure import auth_required

    config = state.read_config()
    if not auth_required(config, config.cluster.kind, config.frontend.host):
        click.echo(f"note: {state.name} asks nobody for a key (security.auth is {config.security.auth})", err=True)


def _note_other_models(state: StateDir, models: tuple[str, ...]) -> None:
    """Say so where the key opens nothing now: a model's name is easily mistyped."""
    served = state.read_config().served_name
    if models and served not in models:
        click.echo(f"note: {state.name} serves {served!r}, which this key is not good for", err=True)
