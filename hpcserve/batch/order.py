"""The order of a run: requests that begin alike next to each other, so that engines compute the beginning once.

A radix sort of what prompts begin with, out of core. The keys are the bytes that a prompt's tokens are made of, as they
come before the chat template (or the token ids, where a prompt is given as such): prompts that share tokens share these
bytes, and nothing is tokenized for it. Requests that share less than `SHARED_BYTES` with all others are on their own.
Groups, and those on their own, come in the order in which the input has the first of each, so that an input in
which nothing is shared stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from struct import Struct
from typing import Any

import msgspec
import numpy as np

from hpcserve.batch.external_sort import RUN_BYTES, Record, sort_records
from hpcserve.batch.lines import Item

SHARED_BYTES = 128  # about a KV block of 32 tokens, as texts and as token ids
_KEY_BYTES = 16 * 1024  # of a prompt that are looked at
_AT_ONCE = 1024  # requests of a group in memory; the name of a larger group is its first of these
_BYTES_AT_ONCE = 2**25  # of them, about
_number = Struct(">Q")
_place = Struct(">QQ")
_encode = msgspec.json.Encoder(order="sorted").encode
_END = b"\x00"


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the input that is a request."""

    number: int
    raw: bytes


def prefix_key(item: Item) -> bytes:
    """Return what the prompt of a request begins with; empty where nothing can be shared."""
    body = item.body
    if item.url == "/v1/embeddings":
        return b""
    parts = [_encode(body["tools"])] if body.get("tools") else []
    if "messages" in body:
        parts += [_of_message(each) for each in body["messages"]]
    elif "prompt" in body:
        parts.append(_of_prompt(body["prompt"]))
    else:
        parts.append(str(body.get("instructions") or "").encode())
        given = body.get("input")
        parts += [_of_message(each) for each in given] if isinstance(given, list) else [str(given).encode()]
    return _END.join(parts)[:_KEY_BYTES]


def in_order(
    lines: Iterable[tuple[Line, bytes]], directory: Path, run_bytes: int = RUN_BYTES
) -> Iterator[tuple[int, Line]]:
    """Yield the lines, each with the number of its group, which is 0 for those on their own.

    `lines` come with their keys. `directory` is where files may lie meanwhile; memory is a few times `run_bytes`.
    """
    by_key = sort_records(((key + _number.pack(line.number), line.raw) for line, key in lines), directory, run_bytes)
    for key, raw in sort_records(_placed(_grouped(by_key)), directory, run_bytes):
        group, _ = _place.unpack_from(key)
        (number,) = _number.unpack_from(key, _place.size)
        yield group if key[_place.size + _number.size :] else 0, Line(number, raw)


def units_of(lines: Iterable[tuple[int, Line]], size: int, read: Callable[[Line], Item | None]) -> Iterator[list[Item]]:
    """Yield requests together that are to be run together, at most `size`: of one group where it has enough of them."""
    unit: list[Item] = []
    for _, group in groupby(lines, key=lambda each: each[0]):
        if len(unit) * 2 >= size:
            yield unit
            unit = []
        for _, line in group:
            item = read(line)
            if item is not None:
                unit.append(item)
            if len(unit) == size:
                yield unit
                unit = []
    if unit:
        yield unit


def _grouped(records: Iterable[Record]) -> Iterator[tuple[bool, list[Record]]]:
    """Yield the records in pieces of at most `_AT_ONCE`, and whether a piece begins a group.

    A group ends before one that shares clearly less with it than its own share, and one that shares clearly more with
    the next begins another: questions about one document are a group, whatever all documents have before them.
    """
    piece: list[Record] = []
    shared, is_first = 0, True  # bytes that all of the group share; 0 while it has one
    num_bytes = 0
    for record in records:
        if piece:
            common = _common(piece[-1][0], record[0])
            if common < SHARED_BYTES or common + SHARED_BYTES <= shared:
                yield is_first, piece
                piece, shared, is_first, num_bytes = [], 0, True, 0
            elif shared and common >= shared + SHARED_BYTES:
                *before, last = piece
                if before:
                    yield is_first, before
                piece, shared, is_first, num_bytes = [last], common, True, 0
            else:
                shared = min(shared or common, common)
            if len(piece) == _AT_ONCE or (len(piece) > 1 and num_bytes > _BYTES_AT_ONCE):
                yield is_first, piece[:-1]
                piece, is_first, num_bytes = piece[-1:], False, 0
        piece.append(record)
        num_bytes += len(record[1])
    if piece:
        yield is_first, piece


def _placed(pieces: Iterable[tuple[bool, list[Record]]]) -> Iterator[Record]:
    """Yield the records with the place of their group, and their own in it, as keys; those on their own end there."""
    group = place = 0
    for is_first, piece in pieces:
        numbers = [_number_of(key) for key, _ in piece]
        if is_first:
            group, place = min(numbers), 0
        mark = b"" if is_first and len(piece) == 1 else _END
        for number, (_, raw) in zip(numbers, piece, strict=True):
            yield _place.pack(group, place) + _number.pack(number) + mark, raw
            place += 1


def _common(one: bytes, other: bytes) -> int:
    """Return how many bytes two keys have in common, without the numbers at their ends."""
    low, high = 0, min(len(one), len(other)) - _number.size
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _number_of(key: bytes) -> int:
    number: int = _number.unpack_from(key, len(key) - _number.size)[0]
    return number


def _of_message(message: Any) -> bytes:
    if not isinstance(message, dict):
        return _encode(message)
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) if isinstance(part, dict) else str(part) for part in content)
    return f"{message.get('role')}:{content}".encode()


def _of_prompt(prompt: Any) -> bytes:
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        prompt = prompt[0]
    if isinstance(prompt, list):
        return np.asarray(prompt, dtype=">u4").tobytes()
    return str(prompt).encode()
