"""`hpcserve receipt`: what a deployment has used, and what came of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from hpcserve.cli.deployment import find, name_option
from hpcserve.cli.streams import say
from hpcserve.errors import HpcserveError

if TYPE_CHECKING:
    from hpcserve.receipt import Receipt
    from hpcserve.state import StateDir
    from hpcserve.types import Status


@click.command("receipt")
@name_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; times are Unix times.")
def command(name: str | None, as_json: bool) -> None:
    """Print what a deployment has used: GPU-hours, how idle they were, and what came of them.

    Of the one that runs, so far; else of the last one, as `hpcserve down` printed it. Where the site has accounting,
    compared with it.
    """
    found = asyncio.run(_receipt(find(name)))
    if as_json:
        click.echo(json.dumps(as_dict(found)))
        return
    for line in lines(found):
        click.echo(line)


async def _receipt(state: StateDir) -> Receipt:
    """Return the one that is kept, unless it runs, or ended without one having been made."""
    from hpcserve.receipt import ReceiptFile
    from hpcserve.serve.receipt import make_receipt

    kept = ReceiptFile(state).read()
    if kept is not None and not state.read_jobs() and state.read_head() is None:
        return kept
    return await make_receipt(state)


async def try_to_make(state: StateDir, seen: Status | None) -> Receipt | None:
    """Return the receipt of what was just taken down, or say why there is none: that it is down is more important."""
    from hpcserve.serve.receipt import make_receipt

    try:
        return await make_receipt(state, seen)
    except (HpcserveError, OSError) as err:
        say(f"no receipt: {err}")
        return None


def as_dict(receipt: Receipt) -> dict[str, Any]:
    """Return every field, and the amounts for each hour."""
    import msgspec

    requests = receipt.num_requests
    fields: dict[str, Any] = msgspec.to_builtins(receipt)
    return fields | {
        "requests_per_hour": None if requests is None else receipt.per_hour(requests),
        "prompt_tokens_per_hour": receipt.per_hour(receipt.prompt_tokens),
        "generated_tokens_per_hour": receipt.per_hour(receipt.generated_tokens),
    }


def lines(receipt: Receipt) -> Iterator[str]:
    """Return the receipt for people."""
    from hpcserve.doctor.durations import hours_in_words

    so_far = "" if receipt.is_final else " so far"
    alive = f", {receipt.num_alive} of them alive" if receipt.num_alive else ""
    workers = f"{receipt.num_workers} worker{'s' * (receipt.num_workers != 1)}{alive}"
    span = f"{_clock(receipt.began_at)} to {_clock(receipt.until)}"
    yield f"used      {hours_in_words(receipt.hours)} {receipt.unit}{so_far}, {workers}, {span}"
    shares = f"{receipt.busy_share:.0%} computing, {receipt.idle_share:.0%} idle, {receipt.loading_share:.0%} loading"
    yield f"of that   {shares}"
    requests = "" if receipt.num_requests is None else f"{receipt.num_requests:,} requests, "
    yield f"served    {requests}{receipt.prompt_tokens:,} prompt tokens, {receipt.generated_tokens:,} generated"
    if receipt.hours > 0:
        yield f"          {_rates(receipt)} a {receipt.unit.removesuffix('s')}"
    if receipt.ends:
        named = sorted(receipt.ends.items(), key=lambda each: -each[1])
        words = ", ".join(f"{num} {cause}" for cause, num in named).replace("_", " ")
        yield f"ends      {words}"
    if receipt.accounting is not None:
        books = receipt.accounting
        agrees = "" if books.differences else ", which agrees"
        yield f"sacct     {hours_in_words(books.hours)} {receipt.unit} in {books.num_jobs} jobs{agrees}"
        yield from (f"          {line}" for line in books.differences)


def _rates(receipt: Receipt) -> str:
    amounts = [("prompt tokens", receipt.prompt_tokens), ("generated", receipt.generated_tokens)]
    if receipt.num_requests is not None:
        amounts.insert(0, ("requests", receipt.num_requests))
    return ", ".join(f"{receipt.per_hour(amount) or 0:,.0f} {word}" for word, amount in amounts)


def _clock(moment: float) -> str:
    return datetime.fromtimestamp(moment).strftime("%Y-%m-%d %H:%M")
