"""Reference-counted KV blocks with a prefix cache. It counts blocks; there is nothing in them.

A block is active (somebody references it), cached (nobody does, but its content has a name and can be used again) or
blank. Blank ones are given out first, then the least recently used cached ones. A name belongs to one block: a second
block with the same content stays nameless, as in vLLM.

What is said to be in use again and again is forgotten last, and then only the most recent `KEPT_SHARE` of all blocks:
the segmented LRU of disk caches (Karedla, Love and Wherry, "Caching strategies to improve disk system performance",
1994), in which a block is protected once it is hit. The cache of one worker sees few of the hits; here the callers say
what was reused, as seen from all workers. It is plain LRU as long as nobody says anything.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from hpcserve.types import BlockHash, BlocksRemoved, BlocksStored, KvEvent

KEPT_SHARE = 0.3
"""Of all blocks, how many may be kept from those that were used only once."""


class BlockPool:
    """All blocks of one engine. Blocks are numbered from 0."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._references = [0] * num_blocks
        self._names: dict[int, BlockHash] = {}  # by block
        self._blocks: dict[BlockHash, int] = {}  # by name
        self._blank = list(range(num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._kept: OrderedDict[int, None] = OrderedDict()  # cached too, and evicted only when `_cached` is empty
        self._max_kept = int(KEPT_SHARE * num_blocks)
        self._events: list[tuple[bool, list[BlockHash]]] = []  # (stored, names), in order

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` could give out."""
        return len(self._blank) + len(self._cached) + len(self._kept)

    @property
    def num_active(self) -> int:
        """Blocks that are referenced."""
        return self.num_blocks - self.num_free

    @property
    def usage(self) -> float:
        """Share of blocks that are active, 0 to 1."""
        return self.num_active / self.num_blocks

    def find(self, names: Iterable[BlockHash]) -> list[int]:
        """Return the blocks of the leading `names` that are here. Changes nothing."""
        found = []
        for name in names:
            block = self._blocks.get(name)
            if block is None:
                break
            found.append(block)
        return found

    def num_free_without(self, blocks: Sequence[int]) -> int:
        """Return how many blocks would be free once `blocks` are referenced."""
        return self.num_free - sum(self._references[block] == 0 for block in blocks)

    def reference(self, blocks: Sequence[int]) -> None:
        """Use blocks that `find` returned."""
        for block in blocks:
            if self._references[block] == 0:
                del self._list_of(block)[block]
            self._references[block] += 1

    def allocate(self, count: int) -> list[int]:
        """Return `count` nameless blocks, forgetting cached ones as needed. Raises `ValueError` beyond `num_free`."""
        if count > self.num_free:
            raise ValueError(f"{count} blocks wanted, {self.num_free} are free")
        taken = [self._blank.pop() if self._blank else self._evict() for _ in range(count)]
        for block in taken:
            self._references[block] = 1
        return taken

    def name(self, block: int, name: BlockHash) -> None:
        """Say what an active block holds now, so that it can be found."""
        if name not in self._blocks:
            self._blocks[name] = block
            self._names[block] = name
            self._note(True, name)

    def free(self, blocks: Sequence[int], num_reused: int = 0) -> None:
        """Give back one reference of each. Of one sequence's blocks the last are forgotten first.

        The leading `num_reused` were asked for before, and are kept for longer.
        """
        self._release(blocks[num_reused:], self._cached)
        self._release(blocks[:num_reused], self._kept)
        while len(self._kept) > self._max_kept:
            block, _ = self._kept.popitem(last=False)
            self._cached[block] = None

    def demote(self, names: Iterable[BlockHash]) -> None:
        """Have the leading `names` that are here forgotten next, the last of them first. What is active stays."""
        for block in self.find(names):
            if self._references[block] == 0:
                del self._list_of(block)[block]
                self._cached[block] = None
                self._cached.move_to_end(block, last=False)

    def take_events(self) -> list[KvEvent]:
        """Return what was stored and removed since the last call, in order."""
        events: list[KvEvent] = [BlocksStored(n) if stored else BlocksRemoved(n) for stored, n in self._events]
        self._events = []
        return events

    def _release(self, blocks: Sequence[int], cached: OrderedDict[int, None]) -> None:
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block] == 0:
                if block in self._names:
                    cached[block] = None
                else:
                    self._blank.append(block)

    def _list_of(self, block: int) -> OrderedDict[int, None]:
        return self._cached if block in self._cached else self._kept

    def _evict(self) -> int:
        block, _ = (self._cached or self._kept).popitem(last=False)
        name = self._names.pop(block)
        del self._blocks[name]
        self._note(False, name)
        return block

    def _note(self, stored: bool, name: BlockHash) -> None:
        if self._events and self._events[-1][0] is stored:
            self._events[-1][1].append(name)
        else:
            self._events.append((stored, [name]))
