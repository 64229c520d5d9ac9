"""Memory of an engine in another process, as its courier sees it: shared memory, and a process that copies."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from hpcserve.errors import KVError
from hpcserve.kv import courier_wire as wire
from hpcserve.kv.memory import Range
from hpcserve.kv.room import Room

_HALF = wire.SHARED_BYTES // 2


class CourierMemory:
    """`Memory` whose bytes the engine's process copies in and out when told to."""

    pack_bytes = wire.PACK_BYTES

    def __init__(
        self,
        sizes: tuple[int, ...],
        stage: int,
        send: Callable[[wire.FromCourier], None],
        listen: Callable[[], bool],
    ) -> None:
        self.sizes = sizes
        self.error = ""  # why nothing is copied any more
        self._stage = stage
        self._send = send
        self._listen = listen  # hears the engine, `done` above all
        self._rooms = (Room(_HALF), Room(_HALF))
        self._numbers = itertools.count()
        self._waiting: dict[int, _Staged] = {}

    def load(self, ranges: Sequence[Range]) -> _Staged | None:
        """See `Memory`."""
        if self.error:
            raise KVError(self.error)
        staged = self._take(ranges, 0)
        if staged is not None:
            self._waiting[staged.number] = staged
            self._send(wire.Load(staged.number, staged.offset, tuple(ranges)))
        return staged

    def store(self, ranges: Sequence[Range]) -> _Staged | None:
        """See `Memory`."""
        return self._take(ranges, 1, is_copied=True)

    def save(self, staged: _Staged) -> None:
        """Have the engine copy a message to where it belongs."""
        self._waiting[staged.number] = staged
        if self.error:
            self.done(wire.Done(staged.number, self.error))
            return
        self._send(wire.Store(staged.number, staged.offset, tuple(staged.ranges)))

    def done(self, done: wire.Done) -> None:
        """Hear that a copy is over."""
        staged = self._waiting.pop(done.id, None)
        if staged is None:
            return
        staged.is_copied, staged.error = True, done.error
        if staged.is_released:
            self.give_back(staged)

    def give_back(self, staged: _Staged) -> None:
        """Free the room of a message, once nobody copies there any more."""
        if staged.is_copied:
            self._rooms[staged.offset // _HALF].give_back(staged.offset % _HALF)

    def step(self) -> bool:
        """See `Memory`."""
        if self.error:
            return False
        try:
            return self._listen()
        except KVError as err:
            self.error = err.message
            for number in list(self._waiting):
                self.done(wire.Done(number, err.message))
            return True

    def close(self) -> None:
        """See `Memory`."""

    def _take(self, ranges: Sequence[Range], half: int, *, is_copied: bool = False) -> _Staged | None:
        offset = self._rooms[half].take(sum(item.size for item in ranges))
        if offset is None:
            return None
        offset += half * _HALF
        return _Staged(self, next(self._numbers), offset, self._stage + offset, ranges, is_copied=is_copied)


class _Staged:
    """`Outgoing` and `Incoming`."""

    def __init__(
        self, memory: CourierMemory, number: int, offset: int, room: int, ranges: Sequence[Range], *, is_copied: bool
    ) -> None:
        self.number, self.offset, self.room, self.ranges = number, offset, room, ranges
        self.is_copied, self.is_released, self.error = is_copied, False, ""
        self._memory = memory

    def address(self) -> int | None:
        return self.room if self.is_stored() else None

    def commit(self) -> None:
        self.is_copied = False
        self._memory.save(self)

    def is_stored(self) -> bool:
        if self.error:
            raise KVError(f"the engine could not copy its KV: {self.error}")
        return self.is_copied

    def release(self) -> None:
        self.is_released = True
        self._memory.give_back(self)
