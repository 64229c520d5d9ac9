"""What the prefix index asks of a table from block hashes to the numbers of worker sets. Two tables answer it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from hpcserve.types import BlockHash

FREE = 0
"""The value of a hash that is not in the table."""
GONE = 1
"""The value that takes a hash out of the table. A table may keep it for a while; its number is not used again."""

Values = npt.NDArray[np.uint32]
Change = Callable[[int], int]
Moved = Callable[[int, int, int], None]


class BlockTable(Protocol):
    """Hashes to values. What a value means is the caller's matter, but for FREE and GONE."""

    @property
    def room(self) -> int:
        """How many more hashes can be added before `reserve` has to be called."""
        ...

    def reserve(self, num_new: int, num_live: int, rename: Callable[[], Values]) -> BlockTable:
        """Return a table with room for `num_new` more hashes beside the `num_live` ones that are still wanted.

        It is this table, made anew, or another that stands for it from now on. `rename` is called once, and gives the
        new value by old value; FREE drops the hash.
        """
        ...

    def update(self, hashes: Sequence[BlockHash], change: Change, moved: Moved) -> int:
        """Turn the value v of each hash into `change(v)`, and tell `moved(v, change(v), how many)`, in parts.

        Where `change(FREE)` is not FREE, there must be room. Before `change` is asked anew, `moved` is told what came
        of the last answer. Returns how many values were changed.
        """
        ...

    def changes(self, hashes: Sequence[BlockHash]) -> Iterator[tuple[int, int]]:
        """Yield (position, value) of each hash whose value differs from that of the hash before it, the first included.

        Values that came earlier among `hashes` may be left out.
        """
        ...

    def select(self, is_wanted: npt.NDArray[np.bool_]) -> list[BlockHash]:
        """Return the hashes whose value v has `is_wanted[v]`. Walks the whole table."""
        ...
