"""Reading the ends of log files."""

from __future__ import annotations

from pathlib import Path

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
