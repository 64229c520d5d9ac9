"""`hpcserve batch merge`: the parts of an array, put together."""

from __future__ import annotations

from pathlib import Path

import click

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("merge")
@click.argument("parts", type=_FILE, metavar="[PART]...", nargs=-1)
@click.option("-o", "--output", type=_FILE, required=True, metavar="OUT", help="Where all answers go.")
def command(parts: tuple[Path, ...], output: Path) -> None:
    """Put the answers of an array's tasks together, once all have ended.

    Without names the parts are OUT.0.jsonl, OUT.1.jsonl and so on, as `batch submit --array` makes them. They stay.
    """
    from hpcserve.batch.merge import find_parts, merge
    from hpcserve.cli.streams import say

    merged = merge(parts or find_parts(output), output)
    say(f"{merged.num_requests:,} requests of {merged.num_parts} parts, {merged.num_failed:,} failed: {output}")
