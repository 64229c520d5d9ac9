"""Pulls are cut into messages that hold every byte once, in pieces that travel well."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hpcserve.kv.memory import Range
from hpcserve.kv.messages import ALONE_BYTES, LONGEST_BYTES, PACK_BYTES, cut, join
from hpcserve.kv.transport import Copy


def _apart(parts: list[tuple[int, int, int, int, int]]) -> list[Copy]:
    """Return copies whose destinations do not overlap: each begins so many bytes behind the one before."""
    copies, ends = [], [0, 0]
    for remote_region, remote_offset, local_region, gap, size in parts:
        start = ends[local_region] + gap
        copies.append(Copy(remote_region, remote_offset, local_region, start, size))
        ends[local_region] = start + size
    return copies


_regions, _offsets, _gaps = st.integers(0, 1), st.integers(0, 1 << 20), st.sampled_from((0, 0, 1, 5000))
_sizes = st.one_of(st.integers(0, 64), st.integers(0, 1 << 18))
_copies = st.lists(st.tuples(_regions, _offsets, _regions, _gaps, _sizes), max_size=30).map(_apart)


def _bytes_of(copies: list[Copy]) -> dict[tuple[int, int, int, int], int]:
    """Cut to the finest: every run of a byte at both ends, joined again where they follow each other."""
    return {each[:4]: each.size for each in join(copies)}


@given(_copies, st.sampled_from((0, 1000, 1 << 16)))
def test_messages_hold_what_the_copies_say(copies: list[Copy], pack_bytes: int) -> None:
    messages = cut(copies, pack_bytes)
    assert sum(message.size for message in messages) == sum(copy.size for copy in copies)
    for message in messages:
        assert sum(item.size for item in message.remote) == message.size
        assert [item.size for item in message.remote] == [item.size for item in message.local]
        assert message.size <= (pack_bytes or LONGEST_BYTES)
        assert all(item.size for item in message.remote)
        assert len(message.remote) == 1 or message.size <= (pack_bytes or PACK_BYTES)
    pieces = [
        Copy(remote.region, remote.offset, local.region, local.offset, remote.size)
        for message in messages
        for remote, local in zip(message.remote, message.local, strict=True)
    ]
    assert _in_place(pieces) == _in_place(copies)


def _in_place(copies: list[Copy]) -> list[Copy]:
    return list(join(sorted(copies, key=lambda copy: (copy.local_region, copy.local_offset, copy.size))))


def test_neighbours_travel_as_one() -> None:
    copies = [Copy(0, 100 * number, 1, 5000 + 100 * number, 100) for number in range(50)]
    assert _bytes_of(copies) == {(0, 0, 1, 5000): 5000}
    (message,) = cut(copies)
    assert message.remote == (Range(0, 0, 5000),)


def test_long_ranges_go_alone_and_short_ones_together() -> None:
    short = [Copy(0, 10_000_000 + 100 * number, 0, 200 * number, 50) for number in range(10)]
    messages = cut([short[0], Copy(0, 0, 0, 1 << 20, ALONE_BYTES), *short[1:]])
    assert sorted(len(message.remote) for message in messages) == [1, 10]


def test_a_side_that_stages_gets_no_message_larger_than_its_stage() -> None:
    assert {message.size for message in cut([Copy(0, 0, 0, 0, 10_000)], 4096)} == {4096, 10_000 - 2 * 4096}
