"""Where the input comes from: raw lines of a text file, or rows of a Parquet file, as often as they are wanted.

What a line means is `lines.py`'s business. A file is streamed; no more than a line, or a batch of rows, is in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import msgspec

from hpcserve.errors import ConfigError

_MAX_LINE_BYTES = 64 * 2**20
_ROWS_AT_ONCE = 1024


class Source(Protocol):
    """An input that can be read again and gives the same lines each time."""

    @property
    def noun(self) -> str:
        """What its lines are called: "line" or "row"."""
        ...

    def __iter__(self) -> Iterator[bytes]:
        """Yield every line without its end, from the first; blank ones too. Raises `ConfigError`."""
        ...


def open_source(path: Path, *, prompt_column: str | None = None, id_column: str | None = None) -> Source:
    """Return the input in `path`: Parquet where its name ends so, else lines of text. Raises `ConfigError`."""
    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    if path.suffix == ".parquet":
        return ParquetRows(path, prompt_column or "prompt", id_column)
    if prompt_column or id_column:
        raise ConfigError(f"columns are of Parquet files, and {path} is none: its name has to end in .parquet")
    return TextLines(path)


class TextLines:
    """The lines of a file."""

    noun = "line"

    def __init__(self, path: Path) -> None:
        self._path = path

    def __iter__(self) -> Iterator[bytes]:
        """Yield every line without its end."""
        try:
            with self._path.open("rb", buffering=2**20) as file:
                number = 0
                while raw := file.readline(_MAX_LINE_BYTES + 1):
                    number += 1
                    if len(raw) > _MAX_LINE_BYTES:
                        raise ConfigError(f"line {number} of {self._path} is over {_MAX_LINE_BYTES // 2**20} MiB")
                    raw = raw.rstrip(b"\r\n")
                    yield raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw  # some editors mark UTF-8 so
        except OSError as err:
            raise ConfigError(f"cannot read {self._path}: {err.strerror}") from err


class ParquetRows:
    """Two columns of a Parquet file, each row as the JSON text of `[custom_id or null, prompt]`."""

    noun = "row"

    def __init__(self, path: Path, prompt_column: str, id_column: str | None) -> None:
        self._path = path
        self._columns = [prompt_column] if id_column is None else [prompt_column, id_column]
        self._file()  # complains now rather than later

    def __iter__(self) -> Iterator[bytes]:
        """Yield every row."""
        for batch in self._file().iter_batches(batch_size=_ROWS_AT_ONCE, columns=self._columns):
            prompts = batch.column(self._columns[0]).to_pylist()
            ids = batch.column(self._columns[1]).to_pylist() if len(self._columns) > 1 else [None] * len(prompts)
            for custom_id, prompt in zip(ids, prompts, strict=True):
                yield msgspec.json.encode([custom_id, prompt])

    def _file(self) -> Any:
        try:
            import pyarrow
            import pyarrow.parquet as parquet
        except ImportError as err:
            raise ConfigError("Parquet files need pyarrow: pip install 'hpcserve[parquet]'") from err
        try:
            file = parquet.ParquetFile(self._path)
        except (OSError, pyarrow.ArrowException) as err:
            raise ConfigError(f"cannot read {self._path} as Parquet: {err}") from err
        missing = [name for name in self._columns if name not in file.schema_arrow.names]
        if missing:
            there = ", ".join(file.schema_arrow.names)
            raise ConfigError(f"{self._path} has no column {missing[0]!r}; it has {there}")
        return file
