"""Every so-manieth request of an input, for one task of a Slurm array. The lines of the other tasks read as blank ones.

So lines keep their numbers: problems, prompts' ids and the ledger name the same ones as without.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from hpcserve.batch.source import Source
from hpcserve.errors import ConfigError


@dataclass(frozen=True)
class Shard:
    """Part `index` of `num`, counted from 0."""

    index: int
    num: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read I/N. Raises `ConfigError`."""
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if match is None or int(match[1]) >= int(match[2]):
            raise ConfigError(f"--shard {text}: expected I/N, the part I of N, counted from 0, such as 0/8")
        return cls(int(match[1]), int(match[2]))


class ShardedSource:
    """An input of which one part is to be done."""

    def __init__(self, source: Source, shard: Shard) -> None:
        self._source = source
        self._shard = shard

    @property
    def noun(self) -> str:
        """What its lines are called."""
        return self._source.noun

    def __iter__(self) -> Iterator[bytes]:
        """Yield every line, blank where it is another part's; blank lines count for no part."""
        position = -1
        for raw in self._source:
            if raw.strip():
                position += 1
                yield raw if position % self._shard.num == self._shard.index else b""
            else:
                yield raw
