"""Which worker holds which KV block. It believes what it is told: gaps and sequence numbers are `events.py`'s matter.

A block's hash maps to the number of a set of workers. All blocks of a stretch of a prompt tend to be held by the same
workers, so there are few sets, and a look-up has work to do only where the set changes along the prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import compress

from hpcserve.router.block_table import BlockTable
from hpcserve.router.dict_table import DictTable
from hpcserve.router.worker_sets import WorkerSets
from hpcserve.types import BlockHash, WorkerId

_FIRST = 32  # blocks looked up before the others: most prompts that nobody holds end among them
_FEW = 4  # workers whose prefixes end at one block: more of them are named all at once
_REMEMBERED = 64  # sets of workers with their names
_DIGITS = bytes.maketrans(b"01", b"\0\1")


class PrefixIndex:
    """Block hashes to workers, and back to overlaps."""

    def __init__(self) -> None:
        self._table: BlockTable = DictTable()
        self._sets = WorkerSets()
        self._slots: dict[WorkerId, int] = {}
        self._workers: list[WorkerId] = []  # by slot; who had it last, where it is not in use
        self._counts: list[int] = []  # blocks, by slot
        self._live = 0  # bits of the slots in use
        self._names: dict[int, list[WorkerId]] = {}  # by bits of the slots

    def __len__(self) -> int:
        """Return how many different blocks some worker holds."""
        return self._sets.num_blocks

    def store(self, worker: WorkerId, hashes: Sequence[BlockHash]) -> None:
        """Record that `worker` holds these blocks."""
        slot = self._slot(worker)
        sets = self._sets
        self._table = self._table.reserve(len(hashes), sets.num_blocks, sets.merge)
        self._counts[slot] += self._table.update(hashes, partial(sets.joined, 1 << slot), sets.move)

    def remove(self, worker: WorkerId, hashes: Sequence[BlockHash]) -> None:
        """Record that `worker` holds these blocks no more. Blocks it never held are ignored."""
        slot = self._slots.get(worker)
        if slot is None:
            return
        sets = self._sets
        self._counts[slot] -= self._table.update(hashes, partial(sets.left, 1 << slot), sets.move)

    def clear(self, worker: WorkerId) -> None:
        """Forget every block of `worker`."""
        self.drop(worker)

    def drop(self, worker: WorkerId) -> None:
        """Forget `worker`. It comes back with the next `store`. Costs the number of sets, not of blocks."""
        slot = self._slots.pop(worker, None)
        if slot is None:
            return
        self._live ^= 1 << slot
        self._counts[slot] = 0
        self._sets.drop(1 << slot)

    def overlaps(self, hashes: Sequence[BlockHash]) -> dict[WorkerId, int]:
        """Return how many leading blocks of `hashes` each worker holds; workers that hold none are left out."""
        found: dict[WorkerId, int] = {}
        alive = self._live
        masks = self._sets.masks
        for depth, number in self._changes(hashes) if alive else ():
            still = alive & masks[number]
            if still == alive:
                continue
            if found:
                self._note(alive ^ still, depth, found)
            elif depth:  # those that go on are noted again where they end
                found = dict.fromkeys(self._named(alive), depth)
            alive = still
            if not alive:
                return found
        if found:
            self._note(alive, len(hashes), found)
            return found
        return dict.fromkeys(self._named(alive), len(hashes)) if hashes else {}

    def snapshot(self, worker: WorkerId) -> set[BlockHash]:
        """Return the blocks of `worker`. Walks the whole table: for tests and inspection."""
        slot = self._slots.get(worker)
        if slot is None:
            return set()
        return {BlockHash(block) for block in self._table.select(self._sets.with_worker(1 << slot))}

    def num_blocks(self, worker: WorkerId) -> int:
        """Return how many blocks `worker` holds."""
        slot = self._slots.get(worker)
        return 0 if slot is None else self._counts[slot]

    def _changes(self, hashes: Sequence[BlockHash]) -> Iterator[tuple[int, int]]:
        """Yield the depths at which the set changes along a prompt, with the sets."""
        yield from self._table.changes(hashes[:_FIRST])
        if len(hashes) > _FIRST:
            for position, number in self._table.changes(hashes[_FIRST:]):
                yield _FIRST + position, number

    def _note(self, ended: int, depth: int, found: dict[WorkerId, int]) -> None:
        """Record `depth` for every worker whose bit is set in `ended`."""
        if ended.bit_count() > _FEW:
            found.update(dict.fromkeys(self._named(ended), depth))
            return
        while ended:
            slot = ended.bit_length() - 1
            found[self._workers[slot]] = depth
            ended ^= 1 << slot

    def _named(self, mask: int) -> list[WorkerId]:
        """Return the workers whose bits are set in `mask`. Remembers: the holders of what all prompts begin with."""
        named = self._names.get(mask)
        if named is None:
            if len(self._names) == _REMEMBERED:
                self._names.clear()
            digits = f"{mask:b}".encode().translate(_DIGITS)[::-1]
            named = self._names[mask] = list(compress(self._workers, digits))
        return named

    def _slot(self, worker: WorkerId) -> int:
        slot = self._slots.get(worker)
        if slot is None:
            slot = (~self._live & self._live + 1).bit_length() - 1  # the lowest that is not in use
            if slot == len(self._workers):
                self._workers.append(worker)
                self._counts.append(0)
            self._workers[slot] = worker
            self._names.clear()
            self._slots[worker] = slot
            self._live |= 1 << slot
        return slot
