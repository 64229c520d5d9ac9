"""Cuts a pull into messages: neighbours joined, long ranges cut, short ones packed together. Pure.

Measured with Open MPI between two processes of one node: a range of 16 KiB or more is fastest sent alone (3 GB/s at
16 KiB, 7 at 64 KiB, 13 at 1 MiB), shorter ones in one packed buffer; MPI's derived data types stay at 2 GB/s.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from hpcserve.kv.memory import Range
from hpcserve.kv.transport import Copy

ALONE_BYTES = 16 << 10
PACK_BYTES = 256 << 10
LONGEST_BYTES = 64 << 20


class Message(NamedTuple):
    """What is sent at once: the same bytes at the peer and here."""

    remote: tuple[Range, ...]
    local: tuple[Range, ...]
    size: int  # bytes


def cut(copies: Sequence[Copy], pack_bytes: int = 0) -> list[Message]:
    """Return messages in order. `pack_bytes`: a side that stages wants messages of up to this size, all packed."""
    alone = pack_bytes or ALONE_BYTES
    messages: list[Message] = []
    packed: list[Copy] = []
    num_packed = 0
    for copy in _pieces(join(copies), pack_bytes or LONGEST_BYTES):
        if copy.size >= alone:
            messages.append(_message([copy]))
            continue
        if num_packed + copy.size > (pack_bytes or PACK_BYTES):
            messages.append(_message(packed))
            packed, num_packed = [], 0
        packed.append(copy)
        num_packed += copy.size
    if packed:
        messages.append(_message(packed))
    return messages


def _message(copies: list[Copy]) -> Message:
    return Message(
        tuple(Range(copy.remote_region, copy.remote_offset, copy.size) for copy in copies),
        tuple(Range(copy.local_region, copy.local_offset, copy.size) for copy in copies),
        sum(copy.size for copy in copies),
    )


def join(copies: Iterable[Copy]) -> Iterator[Copy]:
    """Join copies that follow each other on both sides; drop empty ones."""
    last: Copy | None = None
    for copy in copies:
        if not copy.size:
            continue
        if last is not None and _follows(copy, last):
            last = last._replace(size=last.size + copy.size)
            continue
        if last is not None:
            yield last
        last = copy
    if last is not None:
        yield last


def _follows(copy: Copy, last: Copy) -> bool:
    return (copy.remote_region, copy.remote_offset, copy.local_region, copy.local_offset) == (
        last.remote_region,
        last.remote_offset + last.size,
        last.local_region,
        last.local_offset + last.size,
    )


def _pieces(copies: Iterable[Copy], longest: int) -> Iterator[Copy]:
    for copy in copies:
        for start in range(0, copy.size, longest):
            yield Copy(
                copy.remote_region,
                copy.remote_offset + start,
                copy.local_region,
                copy.local_offset + start,
                min(longest, copy.size - start),
            )
