"""Which worker holds which KV block. It believes what it is told: gaps and sequence numbers are `events.py`'s matter.

Every hash maps to one integer whose bit `s` says that the worker in slot `s` holds the block. A lookup is one
dictionary access and one `and` a block, whatever the number of workers. Dropping a worker only retires its slot;
the table is swept once as many entries are dead as alive, so a drop costs its worker's blocks, amortised.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from itertools import repeat
from operator import and_

from hpcserve.types import BlockHash, WorkerId

_STRIDE = 64  # blocks looked up at once; most strides end no worker's prefix, and are not walked
_ZEROS = repeat(0)
_SWEEP_FROM = 1024  # dead entries; below this a sweep is not worth starting


class PrefixIndex:
    """Block hashes to workers, and back to overlaps."""

    def __init__(self) -> None:
        self._table: dict[BlockHash, int] = {}
        self._slots: dict[WorkerId, int] = {}
        self._workers: dict[int, WorkerId] = {}  # by bit
        self._counts: dict[int, int] = {}  # blocks, by slot
        self._live = 0  # bits of the slots in use
        self._retired = 0  # bits of the slots that wait for a sweep
        self._num_dead = 0  # blocks of retired slots

    def __len__(self) -> int:
        """Return how many different blocks some worker holds."""
        if self._retired:
            self._sweep()
        return len(self._table)

    def store(self, worker: WorkerId, hashes: Iterable[BlockHash]) -> None:
        """Record that `worker` holds these blocks."""
        slot = self._slot(worker)
        bit = 1 << slot
        table = self._table
        get = table.get
        added = 0
        for block in hashes:
            mask = get(block, 0)
            if not mask & bit:
                table[block] = mask | bit
                added += 1
        self._counts[slot] += added

    def remove(self, worker: WorkerId, hashes: Iterable[BlockHash]) -> None:
        """Record that `worker` holds these blocks no more. Blocks it never held are ignored."""
        slot = self._slots.get(worker)
        if slot is None:
            return
        bit = 1 << slot
        table = self._table
        for block in hashes:
            mask = table.get(block, 0)
            if mask & bit:
                self._counts[slot] -= 1
                if mask == bit:
                    del table[block]
                else:
                    table[block] = mask ^ bit

    def clear(self, worker: WorkerId) -> None:
        """Forget every block of `worker`."""
        self.drop(worker)

    def drop(self, worker: WorkerId) -> None:
        """Forget `worker`. It comes back with the next `store`."""
        slot = self._slots.pop(worker, None)
        if slot is None:
            return
        bit = 1 << slot
        del self._workers[bit]
        self._live ^= bit
        self._retired |= bit
        self._num_dead += self._counts.pop(slot)
        if self._num_dead >= max(_SWEEP_FROM, len(self._table) // 2):
            self._sweep()

    def overlaps(self, hashes: Sequence[BlockHash]) -> dict[WorkerId, int]:
        """Return how many leading blocks of `hashes` each worker holds; workers that hold none are left out."""
        found: dict[WorkerId, int] = {}
        alive = self._live
        get = self._table.get
        for start in range(0, len(hashes), _STRIDE):
            masks = list(map(get, hashes[start : start + _STRIDE], _ZEROS))
            if alive and reduce(and_, masks, alive) != alive:
                alive = self._walk(masks, alive, start, found)
            if not alive:
                return found
        self._note(alive, len(hashes), found)
        return found

    def snapshot(self, worker: WorkerId) -> set[BlockHash]:
        """Return the blocks of `worker`. Walks the whole table: for tests and inspection."""
        slot = self._slots.get(worker)
        if slot is None:
            return set()
        return {block for block, mask in self._table.items() if mask >> slot & 1}

    def num_blocks(self, worker: WorkerId) -> int:
        """Return how many blocks `worker` holds."""
        slot = self._slots.get(worker)
        return 0 if slot is None else self._counts[slot]

    def _walk(self, masks: list[int], alive: int, depth: int, found: dict[WorkerId, int]) -> int:
        """Note every worker of `alive` whose prefix ends in `masks`, the first of which is block `depth`."""
        for mask in masks:
            still = alive & mask
            if still != alive:
                self._note(alive ^ still, depth, found)
                if not still:
                    return 0
                alive = still
            depth += 1
        return alive

    def _note(self, ended: int, depth: int, found: dict[WorkerId, int]) -> None:
        """Record `depth` for every worker whose bit is set in `ended`."""
        if depth == 0:
            return
        while ended:
            bit = ended & -ended
            found[self._workers[bit]] = depth
            ended ^= bit

    def _slot(self, worker: WorkerId) -> int:
        slot = self._slots.get(worker)
        if slot is None:
            free = ~(self._live | self._retired)
            slot = (free & -free).bit_length() - 1
            self._slots[worker] = slot
            self._workers[1 << slot] = worker
            self._counts[slot] = 0
            self._live |= 1 << slot
        return slot

    def _sweep(self) -> None:
        """Take the retired slots out of every entry, so that they can be used again."""
        live = self._live
        table = self._table
        stale = [(block, mask & live) for block, mask in table.items() if mask & self._retired]
        for block, mask in stale:
            if mask:
                table[block] = mask
            else:
                del table[block]
        self._retired = 0
        self._num_dead = 0
