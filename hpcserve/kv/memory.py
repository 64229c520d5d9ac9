"""Registered memory, as a transport that sends and receives messages sees it: `Memory`, and the host's own.

A message is one or more ranges. One range of host memory is sent and received where it lies; several, or ranges that
the fabric cannot reach (device memory, another process), go through a staging buffer.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from hpcserve.errors import KVError
from hpcserve.kv.transport import Region


class Range(NamedTuple):
    """Bytes of a registered region."""

    region: int  # index in what was registered
    offset: int  # bytes
    size: int


class Outgoing(Protocol):
    """A message that is being made ready to be sent."""

    def address(self) -> int | None:
        """Return where its bytes lie, None while they are on their way there. Raises `KVError` if they cannot come."""
        ...

    def release(self) -> None:
        """The bytes are needed no more."""
        ...


class Incoming(Protocol):
    """Room for a message that is being received."""

    @property
    def room(self) -> int:
        """Address of the room."""
        ...

    def commit(self) -> None:
        """All bytes are here: put them where they belong."""
        ...

    def is_stored(self) -> bool:
        """Whether they are there; `commit` came before. Raises `KVError` if they cannot be put there."""
        ...

    def release(self) -> None:
        """The room is needed no more, whether or not anything came."""
        ...


class Memory(Protocol):
    """Everything that one endpoint registered."""

    sizes: tuple[int, ...]
    pack_bytes: int  # messages are packed up to this size; 0: only what is too small to be sent alone

    def load(self, ranges: Sequence[Range]) -> Outgoing | None:
        """Begin to make a message of ranges that were checked; None: no room for now."""
        ...

    def store(self, ranges: Sequence[Range]) -> Incoming | None:
        """Make room for a message; None: not now."""
        ...

    def step(self) -> bool:
        """Move staged bytes on; whether anything moved."""
        ...

    def close(self) -> None:
        """Give all room back."""
        ...


def check(ranges: Iterable[Range], sizes: Sequence[int]) -> None:
    """Raise `KVError` for a range that is not wholly inside of its region."""
    for region, offset, size in ranges:
        if not 0 <= region < len(sizes):
            raise KVError(f"no region {region}; there are {len(sizes)}")
        if offset < 0 or size < 0 or offset + size > sizes[region]:
            raise KVError(f"bytes {offset} to {offset + size} are outside of region {region} of {sizes[region]} bytes")


class HostMemory:
    """Memory of this process."""

    pack_bytes = 0

    def __init__(self, regions: Sequence[Region]) -> None:
        self.sizes = tuple(region.size for region in regions)
        self._addresses = [region.address for region in regions]

    def load(self, ranges: Sequence[Range]) -> Outgoing:
        """See `Memory`."""
        return _Held(self.addresses(ranges), [item.size for item in ranges], is_loaded=True)

    def store(self, ranges: Sequence[Range]) -> Incoming:
        """See `Memory`."""
        return _Arriving(self.addresses(ranges), [item.size for item in ranges])

    def addresses(self, ranges: Sequence[Range]) -> list[int]:
        """Return where ranges begin."""
        return [self._addresses[item.region] + item.offset for item in ranges]

    def step(self) -> bool:
        """See `Memory`."""
        return False

    def close(self) -> None:
        """See `Memory`."""


class _Held:
    """Ranges of host memory: in place if it is one, else gathered."""

    def __init__(self, addresses: list[int], sizes: list[int], *, is_loaded: bool) -> None:
        self._buffer: np.ndarray | None = None
        self._address = addresses[0]
        if len(addresses) == 1:
            return
        self._buffer = np.empty(sum(sizes), np.uint8)
        at = self._address = self._buffer.ctypes.data
        if is_loaded:
            for address, size in zip(addresses, sizes, strict=True):
                ctypes.memmove(at, address, size)
                at += size

    def address(self) -> int | None:
        return self._address

    def release(self) -> None:
        self._buffer = None


class _Arriving:
    """Room for ranges of host memory: in place if it is one, else scattered when all is there."""

    def __init__(self, addresses: list[int], sizes: list[int]) -> None:
        self._addresses, self._sizes = addresses, sizes
        held = _Held(addresses, sizes, is_loaded=False)
        self._held, self.room = held, held.address() or 0

    def commit(self) -> None:
        at = self.room
        if len(self._addresses) > 1:
            for address, size in zip(self._addresses, self._sizes, strict=True):
                ctypes.memmove(address, at, size)
                at += size

    def is_stored(self) -> bool:
        return True

    def release(self) -> None:
        self._held.release()
