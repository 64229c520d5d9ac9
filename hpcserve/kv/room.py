"""Room in one buffer, given out and taken back. Decides only; it touches no memory."""

from __future__ import annotations


class Room:
    """Pieces of `size` bytes: first fit, neighbours joined when they come back."""

    def __init__(self, size: int) -> None:
        self._free = [(0, size)] if size else []
        self._taken: dict[int, int] = {}

    def take(self, size: int) -> int | None:
        """Return the offset of a piece, None if there is none for now."""
        for index, (offset, length) in enumerate(self._free):
            if length >= size:
                self._free[index : index + 1] = [(offset + size, length - size)] if length > size else []
                self._taken[offset] = size
                return offset
        return None

    def give_back(self, offset: int) -> None:
        """Free the piece that begins at `offset`."""
        self._free = sorted([*self._free, (offset, self._taken.pop(offset))])
        joined: list[tuple[int, int]] = []
        for start, length in self._free:
            if joined and sum(joined[-1]) == start:
                joined[-1] = (joined[-1][0], joined[-1][1] + length)
            else:
                joined.append((start, length))
        self._free = joined
