"""Room in a stage is given out once, and comes back whole."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hpcserve.kv.room import Room


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 40)), max_size=60))
def test_pieces_do_not_overlap_and_all_of_it_comes_back(steps: list[tuple[bool, int]]) -> None:
    room, taken = Room(100), {}
    for gives_back, number in steps:
        if gives_back and taken:
            offset = list(taken)[number % len(taken)]
            room.give_back(offset)
            del taken[offset]
        elif (offset := room.take(number)) is not None:
            assert 0 <= offset <= 100 - number
            assert all(offset + number <= start or start + size <= offset for start, size in taken.items())
            taken[offset] = number
    for offset in taken:
        room.give_back(offset)
    assert room.take(100) == 0
    assert room.take(1) is None
