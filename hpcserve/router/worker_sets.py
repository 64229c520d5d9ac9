"""Sets of workers, each kept once under a small number. It knows nothing of blocks but how many point to each set.

Blocks are stored and evicted by the prompt, so a few sets serve millions of blocks.
"""

from __future__ import annotations

from itertools import compress

import numpy as np
import numpy.typing as npt

from hpcserve.router.block_table import FREE, GONE


class WorkerSets:
    """Sets as bit masks: bit `s` says that the worker in slot `s` is in the set. Set FREE and set GONE are empty."""

    def __init__(self) -> None:
        self.masks: list[int] = [0, 0]  # by set
        self._sizes: list[int] = [0, 0]  # blocks, by set; without meaning for FREE and GONE
        self._sets: dict[int, int] = {0: GONE}  # by mask
        self._unused: list[int] = []

    @property
    def num_blocks(self) -> int:
        """How many blocks are in sets that are not empty. Walks all sets."""
        return sum(compress(self._sizes, self.masks))

    def joined(self, bit: int, number: int) -> int:
        """Return the set with the worker of `bit` in it too."""
        mask = self.masks[number]
        joined = mask | bit
        return number if joined == mask else self._sets.get(joined) or self._add(joined)

    def left(self, bit: int, number: int) -> int:
        """Return the set without the worker of `bit`."""
        mask = self.masks[number]
        if not mask & bit:
            return number
        left = mask ^ bit
        return self._sets.get(left) or self._add(left)

    def move(self, old: int, new: int, count: int) -> None:
        """Count `count` blocks out of one set and into another. A set without blocks is forgotten."""
        sizes = self._sizes
        sizes[new] += count
        sizes[old] -= count
        if not sizes[old] and old > GONE:
            self._forget(old)

    def drop(self, bit: int) -> None:
        """Take the worker of `bit` out of every set. Sets that become equal, or empty, stay apart until `merge`."""
        for number, mask in enumerate(self.masks):
            if mask & bit:
                self._unname(number)
                self.masks[number] = mask ^ bit
                if mask != bit:
                    self._sets.setdefault(mask ^ bit, number)
                elif not self._sizes[number]:
                    self._forget(number)

    def merge(self) -> npt.NDArray[np.uint32]:
        """Merge equal sets and forget empty ones. Returns the new number by old number; FREE for the empty ones."""
        renamed = np.full(len(self.masks), FREE, np.uint32)
        for number, mask in enumerate(self.masks):
            if mask:
                renamed[number] = kept = self._sets.setdefault(mask, number)
                if kept != number:
                    self._sizes[kept] += self._sizes[number]
                    self._forget(number)
            elif self._sizes[number] and number > GONE:
                self._forget(number)
        return renamed

    def with_worker(self, bit: int) -> npt.NDArray[np.bool_]:
        """Return by set whether the worker of `bit` is in it."""
        return np.array([bool(mask & bit) for mask in self.masks])

    def _add(self, mask: int) -> int:
        if self._unused:
            number = self._unused.pop()
            self.masks[number] = mask
        else:
            number = len(self.masks)
            self.masks.append(mask)
            self._sizes.append(0)
        self._sets[mask] = number
        return number

    def _forget(self, number: int) -> None:
        self._unname(number)
        self.masks[number] = 0
        self._sizes[number] = 0
        self._unused.append(number)

    def _unname(self, number: int) -> None:
        mask = self.masks[number]
        if self._sets.get(mask) == number:
            del self._sets[mask]
