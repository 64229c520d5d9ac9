"""A `BlockTable` for millions of blocks: 12 bytes a slot, 24 to 48 a block, long look-ups in a few vector operations.

Open addressing with linear probing over two numpy arrays. At ten million entries a `dict` look-up waits 0.3 us for
memory, one after the other; gathering from an array, the processor waits for many at a time.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from hpcserve.router.block_table import FREE, GONE, BlockTable, Change, Moved, Values
from hpcserve.types import BlockHash

_Hashes = npt.NDArray[np.uint64]
_Slots = npt.NDArray[np.int64]

_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio, odd: spreads hashes in sequence too (Fibonacci hashing)
_MIN_BITS = 10
_MIN_SLOTS = 2  # slots a hash, at least; probes stay short: 1.5 a hit and 2.5 a miss on average
_NEW_SLOTS = 3  # the same after a rebuild, so that the next one is far
_FEW = 16  # look-ups that are quicker one by one than in one more vector round
_SHORT = 32  # the same for whole prompts


class ArrayTable:
    """Hashes to values. GONE hashes stay while others were probed past them, until the next rebuild at the latest."""

    def __init__(self, hashes: _Hashes, values: Values, num_new: int = 0) -> None:
        """Take over `hashes` with their `values`, but for FREE ones, and make room for `num_new` more."""
        self._build(hashes, values, num_new)

    @property
    def room(self) -> int:
        """See `BlockTable`."""
        return len(self._values) // _MIN_SLOTS - self._num_used

    def reserve(self, num_new: int, num_live: int, rename: Callable[[], Values]) -> BlockTable:
        """See `BlockTable`. The rebuild takes 1 to 1.5 s at eight million blocks, 0.2 s at one."""
        self._build(self._hashes, rename()[self._values], num_new)
        return self

    def update(self, hashes: Sequence[BlockHash], change: Change, moved: Moved) -> int:
        """See `BlockTable`."""
        slots, values, last = self._hash_at, self._value_at, len(self._values) - 1
        old, new = FREE, change(FREE)
        count, total = 0, 0
        for block, i in zip(hashes, self._homes(_packed(hashes)).tolist(), strict=True):
            value = values[i]
            while value and slots[i] != block:
                i = (i + 1) & last
                value = values[i]
            if value != old:
                if count:
                    moved(old, new, count)
                    total += count
                old, new, count = value, change(value), 0
            if new != old:
                count += 1
                self._num_used += not old
                slots[i], values[i] = block, new
                if new == GONE:
                    self._free_from(i)
        if count:
            moved(old, new, count)
        return total + count

    def changes(self, hashes: Sequence[BlockHash]) -> Iterator[tuple[int, int]]:
        """See `BlockTable`."""
        if len(hashes) <= _SHORT:
            return enumerate(self._find(hashes))
        values = self._find_many(_packed(hashes))
        starts = np.concatenate(([0], (values[1:] != values[:-1]).nonzero()[0] + 1))
        return zip(starts.tolist(), values[starts].tolist(), strict=True)

    def select(self, is_wanted: npt.NDArray[np.bool_]) -> list[BlockHash]:
        """See `BlockTable`."""
        selected: list[BlockHash] = self._hashes[is_wanted[self._values]].tolist()
        return selected

    def _find(self, hashes: Sequence[int]) -> Iterator[int]:
        """Yield the value of each hash, one by one: for few of them, or where the first may be enough."""
        slots, values, last = self._hash_at, self._value_at, len(self._values) - 1
        for block, i in zip(hashes, self._homes(_packed(hashes)).tolist(), strict=True):
            value = values[i]
            while value and slots[i] != block:
                i = (i + 1) & last
                value = values[i]
            yield value

    def _find_many(self, wanted: _Hashes) -> Values:
        """Return the value of each hash; all of them take a step at a time."""
        at = self._homes(wanted)
        found = self._values.take(at)
        open_ = ((self._hashes.take(at) != wanted) & (found != FREE)).nonzero()[0]
        at, wanted = at[open_], wanted[open_]
        last = len(self._values) - 1
        while len(open_) > _FEW:
            at = (at + 1) & last
            values = self._values.take(at)
            found[open_] = values
            still = ((self._hashes.take(at) != wanted) & (values != FREE)).nonzero()[0]
            open_, at, wanted = open_[still], at[still], wanted[still]
        if len(open_):
            found[open_] = list(self._find(wanted.tolist()))
        return found

    def _homes(self, hashes: _Hashes) -> _Slots:
        """Return the slot at which the search for each hash begins."""
        return ((hashes * _SPREAD) >> self._shift).view(np.int64)  # numpy takes no unsigned indices

    def _free_from(self, i: int) -> None:
        """Free slot `i` and the GONE ones before it, if nothing is probed past it."""
        values, last = self._value_at, len(self._values) - 1
        if values[(i + 1) & last]:
            return
        while values[i] == GONE:
            values[i] = FREE
            self._num_used -= 1
            i = (i - 1) & last

    def _build(self, hashes: _Hashes, values: Values, num_new: int) -> None:
        """Lay out a table: by home, each hash goes right behind the one before, or to its home if that is further.

        Slots are in that order already, but for clusters, so that sorting those of an old table is quick.
        """
        kept = values.nonzero()[0]
        hashes, values = hashes[kept], values[kept]
        bits = max(_MIN_BITS, ((len(kept) + num_new) * _NEW_SLOTS).bit_length())
        self._allocate(bits)
        homes = self._homes(hashes)
        order = np.argsort(homes, kind="stable")
        hashes, values, homes = hashes[order], values[order], homes[order]
        ranks = np.arange(len(homes))
        places = np.maximum.accumulate(homes - ranks) + ranks
        fit = int(np.searchsorted(places, 1 << bits))
        self._hashes[places[:fit]] = hashes[:fit]
        self._values[places[:fit]] = values[:fit]
        self._num_used = len(kept)
        self._wrap(hashes[fit:].tolist(), values[fit:].tolist())

    def _allocate(self, bits: int) -> None:
        self._shift = np.uint64(64 - bits)
        self._hashes: _Hashes = np.zeros(1 << bits, np.uint64)
        self._values: Values = np.zeros(1 << bits, np.uint32)
        # Element by element, a memoryview is twice as quick as its array.
        self._hash_at = memoryview(self._hashes)  # type: ignore[arg-type]
        self._value_at = memoryview(self._values)  # type: ignore[arg-type]

    def _wrap(self, hashes: list[int], values: list[int]) -> None:
        """Put hashes for which the table ended too soon into the first free slots from its beginning."""
        i = 0
        for block, value in zip(hashes, values, strict=True):
            while self._value_at[i]:
                i += 1
            self._hash_at[i], self._value_at[i] = block, value


def _packed(hashes: Sequence[int]) -> _Hashes:
    """Return the hashes as an array. Raises `OverflowError` for one that is not an unsigned 64-bit number."""
    return np.frombuffer(array("Q", hashes), np.uint64)  # twice as quick as numpy's own conversion
