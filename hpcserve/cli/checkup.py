"""How the doctor's findings are shown: a table a group on a terminal, a line a check anywhere else."""

from __future__ import annotations

import sys
from collections import Counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import click

from hpcserve.cli.streams import say

if TYPE_CHECKING:
    from hpcserve.doctor.check import Check
    from hpcserve.doctor.examine import Examination

_MARKS = {"ok": "ok", "warning": "warning", "problem": "PROBLEM", "skipped": "skipped"}
_STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red", "skipped": "dim"}


class Checkup:
    """Prints checks as they come, by group. A context manager: leaving it gives the terminal back."""

    def __init__(self, *, as_json: bool) -> None:
        self._is_quiet = as_json
        self._group = ""
        self._console: Any = None
        self._spinner: Any = None

    def __enter__(self) -> Self:
        if not self._is_quiet and sys.stdout.isatty():
            from rich.console import Console

            self._console = Console(highlight=False)
        if not self._is_quiet and sys.stderr.isatty():
            from rich.console import Console

            self._spinner = Console(stderr=True).status("")
            self._spinner.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        if self._spinner is not None:
            self._spinner.stop()
            self._spinner = None

    def progress(self, text: str) -> None:
        """Say what takes its time now."""
        if self._spinner is not None:
            self._spinner.update(text)
        elif not self._is_quiet and text.startswith("job"):
            say(text)

    def show(self, checks: list[Check]) -> None:
        """Print checks of one group."""
        if self._is_quiet:
            return
        for check in checks:
            if check.group != self._group:
                self._group = check.group
                self._print_head(check.group)
            self._print(check)

    def finish(self, seen: Examination) -> None:
        """Print the estimate and the sum."""
        if self._is_quiet:
            return
        self.__exit__(None, None, None)
        if seen.estimate is not None:
            self._print_head("before you start")
            for word, text in seen.estimate.lines():
                click.echo(f"  {'':7}  {word}: {text}")
        wrong = [check for check in seen.checks if check.outcome == "problem"]
        if wrong:
            self._print_head("to change, or `hpcserve up` would not work")
            for number, (where, what) in enumerate(_summed(wrong), 1):
                click.echo(f"  {number}. {where}: {what}")
        click.echo(f"\n{_sum(seen.checks)}")

    def _print_head(self, group: str) -> None:
        if self._console is not None:
            self._console.print(f"\n[bold]{group}[/bold]")
        else:
            click.echo(f"\n{group}")

    def _print(self, check: Check) -> None:
        outcome = str(check.outcome)
        mark, change = _MARKS[outcome], f"  -> {check.change}" if check.change else ""
        if self._console is None:
            click.echo(f"  {mark:7}  {check.name}: {check.found}")
            if change:
                click.echo(f"  {'':7}{change}")
            return
        from rich.padding import Padding
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 2))
        grid.add_column(width=7)
        grid.add_column(width=22)
        grid.add_column(ratio=1, overflow="fold")
        found = Text(check.found)
        if change:
            found.append(f"\n-> {check.change}", style="bold")
        grid.add_row(Text(mark, style=_STYLES[outcome]), check.name, found)
        self._console.print(Padding(grid, (0, 0, 0, 2)))


def _summed(wrong: list[Check]) -> list[tuple[str, str]]:
    """Return where something is wrong and what to change; what is wrong in several places is there once."""
    places: dict[tuple[str, str], list[str]] = {}
    for check in wrong:
        places.setdefault((check.name, check.change or check.found), []).append(check.group)
    return [(f"{name} ({', '.join(groups)})", what) for (name, what), groups in places.items()]


def _sum(checks: list[Check]) -> str:
    counts = Counter(str(check.outcome) for check in checks)
    said = [
        f"{num} {word}"
        for num, word in (
            (counts["problem"], "problem" if counts["problem"] == 1 else "problems"),
            (counts["warning"], "warning" if counts["warning"] == 1 else "warnings"),
            (counts["skipped"], "not checked"),
            (counts["ok"], "ok"),
        )
        if num
    ]
    return ", ".join(said) + ("" if counts["problem"] else ": nothing is in the way")
