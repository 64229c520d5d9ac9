"""The views for a terminal, drawn with rich. Rich redraws them from a thread of its own, so elapsed times run on."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import IO, Self, cast

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from hpcserve.cli.describe import headline, one_line, worker_state
from hpcserve.cli.log_files import NUM_TAIL_LINES
from hpcserve.cli.streams import LastingStderr
from hpcserve.observability.log_files import tail
from hpcserve.types import Status, WorkerId, WorkerInfo, WorkerState

_REFRESH_PER_S = 4
_STYLES = {
    WorkerState.PENDING: "dim",
    WorkerState.READY: "bold green",
    WorkerState.DRAINING: "yellow",
    WorkerState.STOPPED: "dim",
    WorkerState.FAILED: "bold red",
}


class _LiveView(ABC):
    """A part of the terminal that is drawn again and again; subclasses say what is in it."""

    def __init__(self, console: Console | None = None) -> None:
        self._status: Status | None = None
        self._live = Live(
            console=console or Console(file=cast("IO[str]", LastingStderr())),
            get_renderable=self.render,
            refresh_per_second=_REFRESH_PER_S,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        self._live.stop()

    def update(self, status: Status) -> None:
        """Show this status from the next redraw on."""
        self._status = status

    def note(self, text: str) -> None:
        """Print a line above."""
        self._live.console.print(text, markup=False, highlight=False)

    @abstractmethod
    def render(self) -> RenderableType:
        """Return what to draw now."""


class LiveTable(_LiveView):
    """One row a worker, with the time since it was first seen until it was READY, and the logs of those that failed."""

    def __init__(self, logs: Path, console: Console | None = None) -> None:
        self._logs = logs
        self._first_seen: dict[WorkerId, float] = {}
        self._settled: dict[WorkerId, float] = {}
        super().__init__(console)

    def update(self, status: Status) -> None:
        """Show this status from the next redraw on."""
        now = time.monotonic()
        for worker in status.workers:
            self._first_seen.setdefault(worker.worker, now)
            if worker.state is WorkerState.READY or worker.state.is_final:
                self._settled.setdefault(worker.worker, now)
        super().update(status)

    def render(self) -> RenderableType:
        """Return the table, the warnings, and the last log lines of failed workers."""
        status = self._status
        if status is None:
            return Spinner("dots", "starting the head")
        below = [Text(f"warning: {warning}", style="yellow") for warning in status.warnings]
        failed = [worker for worker in status.workers if worker.state is WorkerState.FAILED]
        rows = [self._table(status)] if status.workers else []
        above = Text(headline(status), style="bold")
        return Group(above, *rows, *below, *(self._failure(worker) for worker in failed))

    def _table(self, status: Status) -> Table:
        table = Table(box=None, pad_edge=False)
        for heading in ("pool", "worker", "job", "state", "host"):
            table.add_column(heading, overflow="fold")
        table.add_column("time", justify="right")
        for worker in status.workers:
            state = Text(worker_state(worker), style=_STYLES.get(worker.state, "cyan"))
            cells = (worker.pool, worker.worker, worker.job_id or "", state, worker.host or "")
            table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in cells), self._elapsed(worker))
        return table

    def _elapsed(self, worker: WorkerInfo) -> Text:
        until = self._settled.get(worker.worker, time.monotonic())
        return Text(f"{until - self._first_seen[worker.worker]:.0f} s")

    def _failure(self, worker: WorkerInfo) -> RenderableType:
        lines = tail(self._logs / f"{worker.worker}.log", NUM_TAIL_LINES) or ["(its log is empty)"]
        return Text(f"{worker.worker}, last lines of its log:\n  " + "\n  ".join(lines), style="red")


class LiveLine(_LiveView):
    """One line while the deployment serves, and above it what became of workers that failed."""

    def __init__(self, console: Console | None = None) -> None:
        self._told: set[str] = set()
        super().__init__(console)

    def update(self, status: Status) -> None:
        """Show this status from the next redraw on."""
        failed = (worker for worker in status.workers if worker.state is WorkerState.FAILED)
        news = [f"{worker.worker} {worker_state(worker)}" for worker in failed]
        for line in [*news, *(f"warning: {warning}" for warning in status.warnings)]:
            if line not in self._told:
                self._told.add(line)
                self.note(line)
        super().update(status)

    def render(self) -> RenderableType:
        """Return the line."""
        return Text(f"{one_line(self._status)}   (Ctrl-C stops it)" if self._status else "")
