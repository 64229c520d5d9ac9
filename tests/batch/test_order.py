"""Requests that begin alike become neighbours, all of them stay, and an input that shares nothing stays as it is."""

import itertools
import random
import subprocess
import sys
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcserve.batch import order
from hpcserve.batch.external_sort import sort_records
from hpcserve.batch.lines import CHAT, Item
from hpcserve.batch.order import Line, in_order, prefix_key, units_of
from hpcserve.errors import HpcserveError

SYSTEM = "You answer questions about one document at a time, in as few words as will do, and you never guess. " * 3


def chat(number: int, text: str, **fields: Any) -> Item:
    return Item(number, f"r{number}", CHAT, {"messages": [{"role": "user", "content": text}], **fields})


def arrange(items: list[Item], directory: Path, run_bytes: int = 2**20) -> list[tuple[int, int]]:
    """Return (group, number) of each item in the order of a run."""
    lines = ((Line(item.number, b"x" * item.number), prefix_key(item)) for item in items)
    placed = list(in_order(lines, directory, run_bytes))
    assert all(line.raw == b"x" * line.number for _, line in placed)
    return [(group, line.number) for group, line in placed]


def questions(num_documents: int, num_questions: int, before: str = "") -> list[Item]:
    """Return questions about documents, shuffled; question number n is about document n % num_documents."""
    numbers = list(range(num_documents * num_questions))
    random.Random(3).shuffle(numbers)
    texts = [f"{before}{number % num_documents} document. {'word ' * 200}? {number}" for number in numbers]
    named = enumerate(zip(numbers, texts, strict=True), 1)
    return [chat(place, text, about=number % num_documents) for place, (number, text) in named]


@pytest.mark.parametrize("before", ["", SYSTEM], ids=["apart from the start", "after a common system prompt"])
def test_questions_about_one_document_are_a_group(tmp_path: Path, before: str) -> None:
    items = questions(8, 20, before)
    about = {item.number: item.body["about"] for item in items}
    placed = arrange(items, tmp_path)
    groups = {group: {about[number] for each, number in placed if each == group} for group, _ in placed}
    assert sorted(next(iter(each)) for each in groups.values()) == list(range(8))
    changes = sum(one[0] != other[0] for one, other in itertools.pairwise(placed))
    assert changes == 7


def test_what_shares_nothing_stays_in_the_order_of_the_input(tmp_path: Path) -> None:
    letters = random.Random(1)
    items = [chat(number, "".join(letters.choices("abcdefgh ", k=300))) for number in range(1, 200)]
    assert arrange(items, tmp_path) == [(0, number) for number in range(1, 200)]


def test_groups_come_where_the_input_has_their_first_request(tmp_path: Path) -> None:
    shared = "the same beginning of a prompt " * 10
    items = [
        chat(1, "alone " * 50),
        chat(2, shared + "zz"),
        chat(3, "lonely " * 50),
        chat(4, shared + "aa"),
        chat(5, "solitary " * 50),
    ]
    assert arrange(items, tmp_path) == [(0, 1), (2, 4), (2, 2), (0, 3), (0, 5)]


def test_a_group_that_is_larger_than_memory_stays_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "_AT_ONCE", 8)
    items = questions(3, 40)
    placed = arrange(items, tmp_path, run_bytes=4096)
    assert [group for group, _ in placed].count(0) == 0
    assert len({group for group, _ in placed}) == 3
    assert sum(one[0] != other[0] for one, other in itertools.pairwise(placed)) == 2


def test_a_group_of_long_requests_stays_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "_BYTES_AT_ONCE", 300)  # each is up to 120 bytes
    placed = arrange(questions(3, 40), tmp_path)
    assert len({group for group, _ in placed}) == 3
    assert sum(one[0] != other[0] for one, other in itertools.pairwise(placed)) == 2


_texts = st.lists(st.text("ab", max_size=6).map(lambda text: text * 40), max_size=60)


@given(_texts, st.sampled_from([256, 2048, 2**20]))
def test_every_request_comes_once_whatever_fits_into_memory(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], run_bytes: int
) -> None:
    items = [chat(number, text) for number, text in enumerate(texts, 1)]
    placed = arrange(items, tmp_path_factory.getbasetemp(), run_bytes)
    assert sorted(number for _, number in placed) == list(range(1, len(texts) + 1))
    assert placed == arrange(items, tmp_path_factory.getbasetemp())


@given(st.lists(st.tuples(st.binary(max_size=5), st.binary(max_size=9)), unique_by=lambda record: record[0]))
def test_sorting_outside_memory_is_sorting(
    tmp_path_factory: pytest.TempPathFactory, records: list[tuple[bytes, bytes]]
) -> None:
    directory = tmp_path_factory.getbasetemp()
    assert list(sort_records(records, directory, run_bytes=130)) == sorted(records)


def test_many_runs_are_merged_and_no_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcserve.batch.external_sort._MAX_RUNS", 3)
    records = [(number.to_bytes(4, "big"), b"v") for number in random.Random(2).sample(range(5000), 500)]
    found = sort_records(records, tmp_path, run_bytes=1000)
    assert next(found) == min(records)
    assert list(tmp_path.iterdir()) == []
    assert [min(records), *found] == sorted(records)


def test_a_directory_that_takes_no_file_is_named(tmp_path: Path) -> None:
    records = [(bytes([number]), b"x" * 100) for number in range(20)]
    with pytest.raises(HpcserveError, match=r"cannot sort the input in .*gone.*--order input"):
        list(sort_records(records, tmp_path / "gone", run_bytes=500))


def test_units_are_of_one_group_where_it_has_enough() -> None:
    lines = [(1, Line(number, b"")) for number in range(1, 11)] + [(20, Line(number, b"")) for number in range(20, 30)]
    units = list(units_of(lines, 8, lambda line: chat(line.number, "")))
    assert [[item.number for item in unit] for unit in units] == [
        list(range(1, 9)),
        [9, 10, *range(20, 26)],
        [26, 27, 28, 29],
    ]
    halves = list(units_of(lines, 6, lambda line: chat(line.number, "")))
    assert [[item.number for item in unit] for unit in halves] == [
        [1, 2, 3, 4, 5, 6],
        [7, 8, 9, 10],
        [20, 21, 22, 23, 24, 25],
        [26, 27, 28, 29],
    ]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"prompt": [70000, 2, 3]}, {"prompt": [70000, 2, 4]}),
        ({"prompt": "a b c"}, {"prompt": ["a b d"]}),
        ({"instructions": "be brief", "input": "a"}, {"instructions": "be brief", "input": "b"}),
        (
            {"messages": [{"role": "user", "content": "what is that"}]},
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "what is this"}]}]},
        ),
        (
            {"tools": [{"b": 1, "a": 2}], "messages": []},
            {"tools": [{"a": 2, "b": 1}], "messages": [{"role": "user", "content": "x"}]},
        ),
    ],
)
def test_prompts_that_begin_alike_have_keys_that_do(one: dict[str, Any], other: dict[str, Any]) -> None:
    keys = [prefix_key(Item(1, "x", CHAT, body)) for body in (one, other)]
    assert keys[0] != keys[1]
    num_common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(*keys, strict=False)))
    assert num_common >= 2


def test_embeddings_share_nothing() -> None:
    assert prefix_key(Item(1, "x", "/v1/embeddings", {"input": "text " * 100})) == b""


_BIG = """
import resource, sys
from pathlib import Path
from hpcserve.batch.order import Line, in_order
lines = ((Line(n, b"r" * 1000), b"%06d" % (n % 1000) * 30) for n in range(1, 30_001))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
num = sum(1 for _ in in_order(lines, Path(sys.argv[1]), 2**21))
assert num == 30_000
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_memory_does_not_grow_with_the_input(tmp_path: Path) -> None:
    told = subprocess.run(
        [sys.executable, "-c", _BIG, tmp_path], capture_output=True, text=True, check=True, timeout=60
    )
    assert int(told.stdout) < 25, "MB beside 35 MB of input"
