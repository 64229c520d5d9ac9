"""A transport between ends in this process, which moves bytes when a test lets it: `LoopTransport`."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hpcserve.kv.transport import Abilities, Copy, Finished, Region, TransportKind


@dataclass
class Loop:
    """All ends, by description."""

    ends: dict[bytes, LoopTransport] = field(default_factory=dict)


class LoopTransport:
    """One end. Pulls wait for `deliver`; notes arrive at once."""

    kind: TransportKind = "mpi"
    abilities = Abilities("memmove")

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._name = b"end%d" % len(loop.ends)
        loop.ends[self._name] = self
        self.waiting: dict[int, tuple[bytes, list[Copy], bytes]] = {}
        self.is_closed = False
        self._num_pulls = 0
        self._finished: list[Finished] = []
        self._notes: list[bytes] = []

    def register(self, regions: Sequence[Region]) -> None:
        self._regions = list(regions)

    def describe(self) -> bytes:
        return self._name

    def pull(self, peer: bytes, copies: Sequence[Copy], *, note: bytes = b"") -> int:
        self._num_pulls += 1
        self.waiting[self._num_pulls] = (peer, list(copies), note)
        return self._num_pulls

    def cancel(self, pull: int) -> None:
        self._end(pull, "cancelled")

    def notify(self, peer: bytes, note: bytes) -> None:
        if (end := self._loop.ends.get(peer)) is not None:
            end._notes.append(note)

    def poll(self) -> tuple[list[Finished], list[bytes]]:
        finished, notes, self._finished, self._notes = self._finished, self._notes, [], []
        return finished, notes

    def close(self) -> None:
        self.is_closed = True

    def deliver(self, *, half_way: Callable[[], None] = lambda: None) -> None:
        """Copy what is waited for; `half_way` runs when half of the ranges of a pull are read."""
        for number, (peer, copies, _) in list(self.waiting.items()):
            source = self._loop.ends.get(peer)
            for index, copy in enumerate(copies if source else ()):
                if index == len(copies) // 2:
                    half_way()
                theirs, ours = source._regions[copy.remote_region], self._regions[copy.local_region]
                assert copy.remote_offset + copy.size <= theirs.size
                assert copy.local_offset + copy.size <= ours.size
                ctypes.memmove(ours.address + copy.local_offset, theirs.address + copy.remote_offset, copy.size)
            self._end(number, None if source else "nobody is there")

    def _end(self, pull: int, error: str | None) -> None:
        if pull not in self.waiting:
            return
        peer, _, note = self.waiting.pop(pull)
        if note:
            self.notify(peer, note)
        self._finished.append(Finished(pull, error))
