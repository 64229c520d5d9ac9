"""Parts of an input, for the tasks of an array."""

import pytest

from hpcserve.batch.shard import Shard, ShardedSource
from hpcserve.errors import ConfigError


class Lines:
    noun = "line"

    def __init__(self, *lines: bytes) -> None:
        self._lines = lines

    def __iter__(self):
        return iter(self._lines)


def test_each_line_is_in_one_part_under_its_own_number() -> None:
    lines = (b"a", b"", b"b", b"c", b"  ", b"d", b"e")
    parts = [list(ShardedSource(Lines(*lines), Shard(index, 3))) for index in range(3)]
    assert all(len(part) == len(lines) for part in parts)
    for number, raw in enumerate(lines):
        having = [index for index, part in enumerate(parts) if part[number].strip()]
        assert len(having) == (1 if raw.strip() else 0)
    assert [raw for raw in parts[1] if raw.strip()] == [b"b", b"e"]


def test_no_part_is_empty_while_there_are_as_many_requests() -> None:
    source = Lines(b"", b"", b"a", b"", b"b", b"c")
    assert all(any(ShardedSource(source, Shard(index, 3))) for index in range(3))


def test_a_part_is_read_again_and_is_the_same() -> None:
    part = ShardedSource(Lines(b"a", b"b", b"c"), Shard(0, 2))
    assert list(part) == list(part) == [b"a", b"", b"c"]
    assert part.noun == "line"


@pytest.mark.parametrize("text", ["3", "3/3", "1/0", "-1/2", "a/b", "1/2/3", ""])
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="I/N"):
        Shard.parse(text)


def test_parts_are_counted_from_nought() -> None:
    assert Shard.parse("0/8") == Shard(0, 8)
    assert Shard.parse("7/8") == Shard(7, 8)
