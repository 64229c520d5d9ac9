"""A `BlockTable` for up to 350,000 blocks: a `dict`, the quickest there is while it fits the processor's caches.

It takes 60 to 90 bytes a block. Beyond its limit `ArrayTable` takes over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, repeat

import numpy as np
import numpy.typing as npt

from hpcserve.router.array_table import ArrayTable
from hpcserve.router.block_table import FREE, GONE, BlockTable, Change, Moved, Values
from hpcserve.types import BlockHash

_LIMIT = (1 << 19) * 2 // 3  # where CPython's dict would next double
_ABSENT = repeat(FREE)


class DictTable:
    """Hashes to values; GONE hashes leave it at once.

    Most events are of blocks that no other worker holds: those are written, or taken out, without a step of Python for
    each. What turns out to be held by others is then put right.
    """

    def __init__(self, limit: int = _LIMIT) -> None:
        self._limit = limit
        self._values: dict[BlockHash, int] = {}

    @property
    def room(self) -> int:
        """See `BlockTable`."""
        return self._limit - len(self._values)

    def reserve(self, num_new: int, num_live: int, rename: Callable[[], Values]) -> BlockTable:
        """See `BlockTable`. Sweeps if that makes enough room for a while; else an `ArrayTable` takes over."""
        if num_live + num_new > self._limit // 2:
            hashes = np.fromiter(self._values.keys(), np.uint64, len(self._values))
            values = np.fromiter(self._values.values(), np.uint32, len(self._values))
            return ArrayTable(hashes, rename()[values], num_new)
        renamed = rename().tolist()
        self._values = {block: renamed[value] for block, value in self._values.items() if renamed[value]}
        return self

    def update(self, hashes: Sequence[BlockHash], change: Change, moved: Moved) -> int:
        """See `BlockTable`."""
        absent = change(FREE)
        if absent == FREE:
            return self._remove(hashes, change, moved)
        table = self._values
        num_before = len(table)
        values = list(map(table.setdefault, hashes, repeat(absent)))
        num_added = len(table) - num_before
        moved(FREE, absent, num_added)
        if num_added == len(values):
            return num_added
        if len(set(hashes)) < len(values):  # one that comes twice is counted once
            first = dict(zip(hashes, values, strict=True))
            hashes, values = list(first), list(first.values())
        return num_added + self._put(hashes, values, absent, change, moved)

    def _remove(self, hashes: Sequence[BlockHash], change: Change, moved: Moved) -> int:
        """Take hashes out, and put those back whose values do not change to GONE."""
        return self._put(hashes, list(map(self._values.pop, hashes, _ABSENT)), FREE, change, moved)

    def _put(self, hashes: Sequence[BlockHash], values: list[int], written: int, change: Change, moved: Moved) -> int:
        """Write the changed values of hashes, each given once, that had these.

        Those that change to GONE are out already, and where the value is `written` there is nothing to do.
        """
        table = self._values
        end = num_changed = 0
        for value, count in _runs(values):
            start, end = end, end + count
            if value == written:
                continue
            new = change(value)
            if new != GONE:
                for block in hashes[start:end]:
                    table[block] = new
            if new != value:
                moved(value, new, count)
                num_changed += count
        return num_changed

    def changes(self, hashes: Sequence[BlockHash]) -> Iterator[tuple[int, int]]:
        """See `BlockTable`. Yields the first hash of each value only."""
        values = list(map(self._values.get, hashes, _ABSENT))
        position = 0
        for value in dict.fromkeys(values):
            position = values.index(value, position)
            yield position, value

    def select(self, is_wanted: npt.NDArray[np.bool_]) -> list[BlockHash]:
        """See `BlockTable`."""
        wanted = is_wanted.tolist()
        return [block for block, value in self._values.items() if wanted[value]]


def _runs(values: list[int]) -> list[tuple[int, int]]:
    """Return each value and how many times it comes in a row."""
    if values and values.count(values[0]) == len(values):  # a tenth of the time
        return [(values[0], len(values))]
    return [(value, len(list(run))) for value, run in groupby(values)]
