"""Recorded requests in Mooncake's format: JSON lines of timestamp (ms), input_length, output_length and hash_ids.

A trace holds no tokens. Its hash ids name prefixes in blocks of 512 tokens: the same id means the same tokens up to the
end of that block (github.com/kvcache-ai/Mooncake, FAST25-release).
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import msgspec

from hpcserve.errors import ConfigError
from hpcserve.types import BlockHash

TRACE_BLOCK = 512
"""Tokens that one hash id stands for."""
_GZIP_MAGIC = b"\x1f\x8b"


class _Line(msgspec.Struct):
    timestamp: float  # ms
    input_length: int
    output_length: int
    hash_ids: list[int]


class TraceRequest(msgspec.Struct, frozen=True, gc=False):
    """One request. Its blocks have ids of the trace, not hashes yet."""

    arrives_at: float  # s from the trace's beginning
    num_prompt: int  # tokens
    num_output: int  # tokens, at least 1
    hash_ids: tuple[int, ...]
    priority: int = 0  # lower runs first; traces do not tell

    @property
    def session(self) -> str | None:
        """Return what stands for a session, which traces do not tell: the second block. Often all share the first."""
        return str(self.hash_ids[1]) if len(self.hash_ids) > 1 else None

    def block_hashes(self, block_size: int) -> list[BlockHash]:
        """Return a name for each full block of `block_size` tokens, which divides 512."""
        ratio = TRACE_BLOCK // block_size
        names = [hash_id * ratio + index for hash_id in self.hash_ids for index in range(ratio)]
        return cast("list[BlockHash]", names[: self.num_prompt // block_size])


def load_trace(path: Path, limit: int | None = None) -> list[TraceRequest]:
    """Return the first `limit` requests of a file, plain or gzipped, by arrival. Raises `ConfigError`."""
    try:
        data = path.read_bytes()
        if data.startswith(_GZIP_MAGIC):
            data = gzip.decompress(data)
    except (OSError, EOFError) as err:
        raise ConfigError(f"cannot read the trace {path}: {err}") from err
    requests = sorted(_parse(path, data, limit), key=lambda request: request.arrives_at)
    if not requests:
        raise ConfigError(f"the trace {path} has no requests")
    return requests


def _parse(path: Path, data: bytes, limit: int | None) -> Iterator[TraceRequest]:
    decoder = msgspec.json.Decoder(_Line)
    for number, text in enumerate(data.splitlines(), 1):
        if not text.strip():
            continue
        if limit is not None and number > limit:
            return
        try:
            line = decoder.decode(text)
        except msgspec.DecodeError as err:
            raise ConfigError(f"{path}, line {number}: {err}") from err
        problem = _find_problem(line)
        if problem:
            raise ConfigError(f"{path}, line {number}: {problem}")
        yield TraceRequest(line.timestamp / 1000, line.input_length, line.output_length, tuple(line.hash_ids))


def _find_problem(line: _Line) -> str | None:
    if line.input_length < 1 or line.output_length < 1:
        return f"input_length {line.input_length} and output_length {line.output_length} must be at least 1"
    if len(line.hash_ids) < line.input_length // TRACE_BLOCK:
        return f"{len(line.hash_ids)} hash_ids for {line.input_length} tokens; one for each {TRACE_BLOCK} is needed"
    return None
