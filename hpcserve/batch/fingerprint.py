"""What an input is known by, wherever it lies: its lines, hashed together and one by one.

The digest of all (xxh3, 128 bits) decides whether it is the same input. The 32 bits of each line only say which line
is another one now; 4 MB for a million lines.
"""

from __future__ import annotations

import sys
from array import array
from dataclasses import dataclass, field
from itertools import zip_longest

import xxhash


@dataclass
class Fingerprint:
    """Of the lines that were added so far."""

    num_bytes: int = 0
    hashes: array[int] = field(default_factory=lambda: array("I"))
    _digest: xxhash.xxh3_128 = field(default_factory=xxhash.xxh3_128, repr=False)

    @property
    def num_lines(self) -> int:
        """How many lines there are, blank ones too."""
        return len(self.hashes)

    def add(self, raw: bytes) -> None:
        """Take the next line."""
        self.num_bytes += len(raw)
        self.hashes.append(xxhash.xxh3_64_intdigest(raw) & 0xFFFFFFFF)
        self._digest.update(b"%d:" % len(raw))
        self._digest.update(raw)

    def hexdigest(self) -> str:
        """Return the digest of all lines."""
        return self._digest.hexdigest()


def first_difference(before: array[int], now: array[int]) -> int | None:
    """Return the number, from 1, of the first line that is not what it was; None where the hashes are the same."""
    for number, (old, new) in enumerate(zip_longest(before, now), 1):
        if old != new:
            return number
    return None


def pack(hashes: array[int]) -> bytes:
    """Return the hashes as little-endian bytes, four each."""
    return (_swapped(hashes) if sys.byteorder == "big" else hashes).tobytes()


def unpack(data: bytes) -> array[int]:
    """Return what was packed."""
    hashes = array("I", data)
    return _swapped(hashes) if sys.byteorder == "big" else hashes


def _swapped(hashes: array[int]) -> array[int]:
    copy = array("I", hashes)
    copy.byteswap()
    return copy
