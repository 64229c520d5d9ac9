"""Reading the ends of log files."""

from __future__ import annotations

from pathlib import Path

NUM_TAIL_LINES = 8
"""As many lines as an error shows of a log."""
_CHUNK_BYTES = 64 * 1024


def tail(path: Path, num_lines: int) -> list[str]:
    """Return the last lines of a file, without reading the rest; none where there is no such file."""
    if num_lines <= 0 or not path.is_file():
        return []
    with path.open("rb") as file:
        start = file.seek(0, 2)
        data = b""
        while start > 0 and data.count(b"\n") <= num_lines:
            size = min(_CHUNK_BYTES, start)
            start = file.seek(start - size)
            data = file.read(size) + data
    return data.decode(errors="replace").splitlines()[-num_lines:]


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
