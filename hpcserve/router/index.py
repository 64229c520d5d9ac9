"""Which worker holds which KV block. It believes what it is told: gaps and sequence numbers are `events.py`'s matter.

A block's hash maps to the number of a set of workers. All blocks of a stretch of a prompt tend to be held by the same
workers, so there are few sets, and a look-up has work to do only where the set changes along the prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, compress

from hpcserve.router.block_table import BlockTable, Change
from hpcserve.router.dict_table import DictTable
from hpcserve.router.worker_sets import WorkerSets
from hpcserve.types import BlockHash, WorkerId

_FIRST = 32  # blocks looked up before the others: most prompts that nobody holds end among them
_FEW = 4  # workers whose prefixes end at one block: more of them are named all at once
_REMEMBERED = 64  # answers for many workers at once
_DIGITS = bytes.maketrans(b"01", b"\0\1")


@dataclass(slots=True)
class _Slot:
    """A worker's place in the sets."""

    number: int
    join: Change
    leave: Change
    num_blocks: int = 0


class PrefixIndex:
    """Block hashes to workers, and back to overlaps."""

    def __init__(self) -> None:
        self._table: BlockTable = DictTable()
        self._sets = WorkerSets()
        self._slots: dict[WorkerId, _Slot] = {}
        self._workers: list[WorkerId] = []  # by slot number; who had it last, where it is not in use
        self._live = 0  # bits of the slots in use
        self._remembered: dict[tuple[int, int], dict[WorkerId, int]] = {}  # by bits of the slots, and depth

    def __len__(self) -> int:
        """Return how many different blocks some worker holds."""
        return self._sets.num_blocks

    def store(self, worker: WorkerId, hashes: Sequence[BlockHash]) -> None:
        """Record that `worker` holds these blocks."""
        slot = self._slots.get(worker) or self._open(worker)
        if len(hashes) > self._table.room:
            self._table = self._table.reserve(len(hashes), len(self), self._sets.merge)
        slot.num_blocks += self._table.update(hashes, slot.join, self._sets.move)

    def remove(self, worker: WorkerId, hashes: Sequence[BlockHash]) -> None:
        """Record that `worker` holds these blocks no more. Blocks it never held are ignored."""
        slot = self._slots.get(worker)
        if slot is not None:
            slot.num_blocks -= self._table.update(hashes, slot.leave, self._sets.move)

    def clear(self, worker: WorkerId) -> None:
        """Forget every block of `worker`."""
        self.drop(worker)

    def drop(self, worker: WorkerId) -> None:
        """Forget `worker`. It comes back with the next `store`. Costs the number of sets, not of blocks."""
        slot = self._slots.pop(worker, None)
        if slot is not None:
            self._live ^= 1 << slot.number
            self._sets.drop(1 << slot.number)

    def overlaps(self, hashes: Sequence[BlockHash]) -> dict[WorkerId, int]:
        """Return how many leading blocks of `hashes` each worker holds; workers that hold none are left out."""
        found: dict[WorkerId, int] = {}
        alive = self._live
        if not alive or not hashes:
            return found
        masks = self._sets.masks
        for depth, number in self._changes(hashes):
            still = alive & masks[number]
            if still == alive:
                continue
            if found:
                self._note(alive ^ still, depth, found)
            elif depth:  # those that go on are noted again where they end
                found = self._depths(alive, depth).copy()
            alive = still
            if not alive:
                return found
        if found:
            self._note(alive, len(hashes), found)
            return found
        return self._depths(alive, len(hashes)).copy()

    def snapshot(self, worker: WorkerId) -> set[BlockHash]:
        """Return the blocks of `worker`. Walks the whole table: for tests and inspection."""
        slot = self._slots.get(worker)
        return set(self._table.select(self._sets.with_worker(1 << slot.number))) if slot else set()

    def num_blocks(self, worker: WorkerId) -> int:
        """Return how many blocks `worker` holds."""
        slot = self._slots.get(worker)
        return slot.num_blocks if slot else 0

    def _changes(self, hashes: Sequence[BlockHash]) -> Iterator[tuple[int, int]]:
        """Return the depths at which the set changes along a prompt, with the sets."""
        first = self._table.changes(hashes[:_FIRST])
        return chain(first, self._later_changes(hashes)) if len(hashes) > _FIRST else first

    def _later_changes(self, hashes: Sequence[BlockHash]) -> Iterator[tuple[int, int]]:
        for position, number in self._table.changes(hashes[_FIRST:]):
            yield _FIRST + position, number

    def _note(self, ended: int, depth: int, found: dict[WorkerId, int]) -> None:
        """Record `depth` for every worker whose bit is set in `ended`."""
        if ended.bit_count() > _FEW:
            found.update(self._depths(ended, depth))
            return
        while ended:
            slot = ended.bit_length() - 1
            found[self._workers[slot]] = depth
            ended ^= 1 << slot

    def _depths(self, mask: int, depth: int) -> dict[WorkerId, int]:
        """Return `depth` for each worker whose bit is set in `mask`. Not to be changed by the caller.

        Remembered, because many prompts begin alike.
        """
        key = (mask, depth)
        depths = self._remembered.get(key)
        if depths is None:
            if len(self._remembered) == _REMEMBERED:
                self._remembered.clear()
            digits = f"{mask:b}".encode().translate(_DIGITS)[::-1]
            depths = self._remembered[key] = dict.fromkeys(compress(self._workers, digits), depth)
        return depths

    def _open(self, worker: WorkerId) -> _Slot:
        """Give `worker` the lowest slot that is not in use."""
        bit = ~self._live & self._live + 1
        number = bit.bit_length() - 1
        self._workers[number : number + 1] = [worker]
        self._remembered.clear()
        self._live |= bit
        slot = self._slots[worker] = _Slot(number, partial(self._sets.joined, bit), partial(self._sets.left, bit))
        return slot
