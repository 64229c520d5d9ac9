"""Registered memory with device memory in it, for an MPI that cannot read it: staged in pinned host memory."""

from __future__ import annotations

from collections.abc import Sequence

from hpcserve.kv.memory import Range
from hpcserve.kv.range_copies import Marks, RangeCopies, still_running
from hpcserve.kv.room import Room
from hpcserve.kv.transport import Region

STAGE_BYTES = 128 << 20
PACK_BYTES = 4 << 20


class PinnedMemory:
    """`Memory` of one or more GPUs, and the host's. Every message goes through one pinned buffer of `STAGE_BYTES`.

    Half of it is for what is sent: pulls of ours then never wait for peers that do not fetch.
    """

    pack_bytes = PACK_BYTES

    def __init__(self, regions: Sequence[Region]) -> None:
        self.sizes = tuple(region.size for region in regions)
        self.copies = RangeCopies(regions)
        self._first = next(iter(self.copies.streams.values()))
        self._stage = self._first.pinned(STAGE_BYTES)
        self._rooms = (Room(STAGE_BYTES // 2), Room(STAGE_BYTES // 2))
        self._late: list[_Staged] = []

    def load(self, ranges: Sequence[Range]) -> _Staged | None:
        """See `Memory`."""
        staged = self._take(ranges, 0)
        if staged is not None:
            staged.fetch()
        return staged

    def store(self, ranges: Sequence[Range]) -> _Staged | None:
        """See `Memory`."""
        return self._take(ranges, 1)

    def give_back(self, staged: _Staged) -> None:
        """Free the room, once nothing is copied there any more."""
        if not staged.is_stored():
            self._late.append(staged)
            return
        half, offset = divmod(staged.room - self._stage, STAGE_BYTES // 2)
        self._rooms[half].give_back(offset)

    def step(self) -> bool:
        """See `Memory`."""
        late, self._late = self._late, []
        for staged in late:
            self.give_back(staged)
        return len(self._late) < len(late)

    def close(self) -> None:
        """See `Memory`."""
        for stream in self.copies.streams.values():
            stream.close(self._stage if stream is self._first else 0)

    def _take(self, ranges: Sequence[Range], half: int) -> _Staged | None:
        offset = self._rooms[half].take(sum(item.size for item in ranges))
        return None if offset is None else _Staged(self, self._stage + half * STAGE_BYTES // 2 + offset, ranges)


class _Staged:
    """`Outgoing` and `Incoming`."""

    def __init__(self, memory: PinnedMemory, room: int, ranges: Sequence[Range]) -> None:
        self.room = room
        self._memory = memory
        self._ranges = ranges
        self._marks: Marks = []

    def fetch(self) -> None:
        self._marks = self._memory.copies.gather(self._ranges, self.room)

    def address(self) -> int | None:
        return self.room if self.is_stored() else None

    def commit(self) -> None:
        self._marks = self._memory.copies.scatter(self._ranges, self.room)

    def is_stored(self) -> bool:
        self._marks = still_running(self._marks)
        return not self._marks

    def release(self) -> None:
        self._memory.give_back(self)
