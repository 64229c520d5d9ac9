"""Ways of showing a deployment that changes: a live table on a terminal, a line a change anywhere else.

All of them write to standard error; standard output is for results.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from hpcserve.cli.describe import headline, worker_state
from hpcserve.cli.log_files import NUM_TAIL_LINES
from hpcserve.cli.streams import say
from hpcserve.observability.log_files import tail
from hpcserve.types import Status, WorkerId, WorkerInfo, WorkerState


class View(Protocol):
    """Shows the newest status. A context manager: leaving it gives the terminal back."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None
    ) -> None: ...
    def update(self, status: Status) -> None:
        """Show what changed."""
        ...

    def note(self, text: str) -> None:
        """Say something that is no status."""
        ...


class Screen:
    """Chooses the views of one command: drawn ones on a terminal, else one that prints what is new since the last."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._lines = None if sys.stderr.isatty() else LineView(logs)

    def table(self) -> View:
        """Return the view for coming up and going down: a row a worker."""
        if self._lines is not None:
            return self._lines
        from hpcserve.cli.live import LiveTable

        return LiveTable(self._logs)

    def line(self) -> View:
        """Return the view for while it serves: one line."""
        if self._lines is not None:
            return self._lines
        from hpcserve.cli.live import LiveLine

        return LiveLine()


class LineView:
    """Prints one line for each change of a worker, of the phase, and for each new warning."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._started = time.monotonic()
        self._shown: dict[WorkerId, WorkerInfo] = {}
        self._phase: str | None = None
        self._warned: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        return None

    def update(self, status: Status) -> None:
        """Print what is new."""
        for worker in status.workers:
            before = self._shown.get(worker.worker)
            if before is None or _looks(before) != _looks(worker):
                self._print_worker(worker)
            self._shown[worker.worker] = worker
        for warning in status.warnings:
            if warning not in self._warned:
                self._warned.add(warning)
                self.note(f"warning: {warning}")
        if status.phase != self._phase:
            self._phase = status.phase
            self.note(headline(status))

    def note(self, text: str) -> None:
        """Print a line with the seconds since the view was made."""
        say(f"[{time.monotonic() - self._started:6.1f} s] {text}")

    def _print_worker(self, worker: WorkerInfo) -> None:
        where = "".join(f"  {label} {value}" for label, value in (("job", worker.job_id), ("on", worker.host)) if value)
        self.note(f"{worker.worker}{where}  {worker_state(worker)}")
        if worker.state is WorkerState.FAILED:
            for line in tail(self._logs / f"{worker.worker}.log", NUM_TAIL_LINES):
                say(f"    {line}")


def _looks(worker: WorkerInfo) -> tuple[object, ...]:
    return worker.state, worker.detail, worker.job_id
