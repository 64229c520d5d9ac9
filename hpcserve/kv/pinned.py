"""Registered memory with device memory in it, for an MPI that cannot read it: staged in pinned host memory."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from hpcserve.kv.cuda import CudaStream
from hpcserve.kv.memory import Range
from hpcserve.kv.room import Room
from hpcserve.kv.transport import Region

STAGE_BYTES = 64 << 20
PACK_BYTES = 4 << 20


class PinnedMemory:
    """`Memory` of one GPU, and the host's. Every message goes through one pinned buffer of `STAGE_BYTES`."""

    pack_bytes = PACK_BYTES

    def __init__(self, regions: Sequence[Region]) -> None:
        self.sizes = tuple(region.size for region in regions)
        self._regions = regions
        self._room = Room(STAGE_BYTES)
        self._streams = {
            device: CudaStream(device) for device in {item.device for item in regions} if device is not None
        }
        self._first = next(iter(self._streams.values()))
        self._stage = self._first.pinned(STAGE_BYTES)

    def load(self, ranges: Sequence[Range]) -> _Staged | None:
        """See `Memory`."""
        staged = self.store(ranges)
        if staged is not None:
            staged.fetch()
        return staged

    def store(self, ranges: Sequence[Range]) -> _Staged | None:
        """See `Memory`."""
        offset = self._room.take(sum(item.size for item in ranges))
        return None if offset is None else _Staged(self, self._stage + offset, ranges)

    def copy(self, ranges: Sequence[Range], at: int, *, is_inward: bool) -> list[tuple[CudaStream, ctypes.c_void_p]]:
        """Begin to copy ranges from (or to) `at`, and return the events that tell when it is done."""
        used = set()
        for item in ranges:
            region = self._regions[item.region]
            address = region.address + item.offset
            if region.device is None:
                ctypes.memmove(*((at, address) if is_inward else (address, at)), item.size)
            elif is_inward:
                self._streams[region.device].to_host(at, address, item.size)
            else:
                self._streams[region.device].to_device(address, at, item.size)
            if region.device is not None:
                used.add(self._streams[region.device])
            at += item.size
        return [(stream, stream.mark()) for stream in used]

    def give_back(self, address: int) -> None:
        """Free room in the stage."""
        self._room.give_back(address - self._stage)

    def step(self) -> bool:
        """See `Memory`."""
        return False

    def close(self) -> None:
        """See `Memory`."""
        for stream in self._streams.values():
            stream.close(self._stage if stream is self._first else 0)


class _Staged:
    """`Outgoing` and `Incoming`."""

    def __init__(self, memory: PinnedMemory, address: int, ranges: Sequence[Range]) -> None:
        self._memory = memory
        self._at = address
        self._ranges = ranges
        self._events: list[tuple[CudaStream, ctypes.c_void_p]] = []

    @property
    def room(self) -> int:
        """Where the message lies in the stage."""
        return self._at

    def fetch(self) -> None:
        """Begin to copy the ranges here."""
        self._events = self._memory.copy(self._ranges, self._at, is_inward=True)

    def address(self) -> int | None:
        """See `Outgoing`."""
        return self._at if self.is_stored() else None

    def commit(self) -> None:
        """See `Incoming`."""
        self._events = self._memory.copy(self._ranges, self._at, is_inward=False)

    def is_stored(self) -> bool:
        """See `Incoming`."""
        self._events = [(stream, event) for stream, event in self._events if not stream.is_reached(event)]
        return not self._events

    def release(self) -> None:
        """See both. A copy that still runs writes to nobody's room until the stage gives it out again, in order."""
        self._memory.give_back(self._at)
