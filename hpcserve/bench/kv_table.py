"""Pairs as people read them."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from hpcserve.bench.kv_pairs import KvReport, KvRow

_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def print_report(report: KvReport) -> None:
    """Print one line for each pair and size to standard output, pairs on one node first."""
    table = Table(title=f"KV pulled over {report.path}, GB/s", title_justify="left")
    table.add_column("from", no_wrap=True)
    table.add_column("to", no_wrap=True)
    table.add_column("through", overflow="fold")
    has_plain = any(row.plain_gb_per_s is not None for row in report.rows)
    for heading in ("size", "pull", *(("Send/Recv",) if has_plain else ()), "memcpy", "of memcpy"):
        table.add_column(heading, justify="right", no_wrap=True)
    last: tuple[int, int] | None = None
    for row in sorted(report.rows, key=_by_node):
        pair = (row.puller, row.source)
        if last is not None and pair != last:
            table.add_section()
        names = (f"{row.source} {row.source_node}", f"{row.puller} {row.puller_node}", row.interface)
        table.add_row(*(names if pair != last else ("", "", "")), *_figures(row, has_plain=has_plain))
        last = pair
    Console().print(table)


def words(size: int) -> str:
    """Return a number of bytes as people write it, exactly."""
    for unit, name in _UNITS:
        if size >= unit and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B"


def _by_node(row: KvRow) -> tuple[object, ...]:
    return (row.puller_node != row.source_node, row.source_node, row.puller_node, row.source, row.puller, row.size)


def _figures(row: KvRow, *, has_plain: bool) -> list[str]:
    if row.error is not None:
        return [words(row.size), f"[red]{row.error}[/red]"]
    plain = [] if not has_plain else ["" if row.plain_gb_per_s is None else f"{row.plain_gb_per_s:.2f}"]
    rates = [f"{row.gb_per_s:.2f}", *plain, f"{row.memcpy_gb_per_s:.2f}"]
    return [words(row.size), *rates, f"{row.gb_per_s / row.memcpy_gb_per_s:.0%}"]
