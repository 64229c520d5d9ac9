"""Following log files, and how much of them an error shows."""

from __future__ import annotations

from pathlib import Path

NUM_TAIL_LINES = 8
"""As many lines as an error shows of a log."""


class Follower:
    """Hands out the complete lines that were added to a file since it was last asked. Never waits."""

    def __init__(self, path: Path, *, from_end: bool) -> None:
        self.path = path
        self._offset = path.stat().st_size if from_end and path.is_file() else 0
        self._rest = b""

    def new_lines(self) -> list[str]:
        """Return them; a file that became shorter is read from its beginning."""
        if not self.path.is_file():
            return []
        with self.path.open("rb") as file:
            if file.seek(0, 2) < self._offset:
                self._offset, self._rest = 0, b""
            file.seek(self._offset)
            data = self._rest + file.read()
            self._offset = file.tell()
        *lines, self._rest = data.split(b"\n")
        return [line.decode(errors="replace") for line in lines]
