"""What the ledger's lines are: a header, the hashes of the input's lines, then one record a finished request.

Every line is the xxh3 checksum of a JSON text, a blank, and that text. The ledger is only appended to. A record is
written after the bytes that it speaks of are on disk, so what it says is true whenever it can be read.
"""

from __future__ import annotations

import base64
from array import array
from collections.abc import Iterator
from typing import Any

import msgspec
import xxhash

from hpcserve.batch.fingerprint import Fingerprint, pack, unpack

VERSION = 1
_HASHES_A_LINE = 4096


class Header(msgspec.Struct, frozen=True, kw_only=True, tag="header"):
    """What the results are of."""

    version: int = VERSION
    output: str  # name of the file, without its directory
    settings: dict[str, Any]  # of the requests, besides the lines
    num_lines: int
    num_requests: int
    num_bytes: int
    digest: str


class LineHashes(msgspec.Struct, frozen=True, kw_only=True, tag="lines"):
    """The 32-bit hashes of some lines of the input; see `fingerprint.py`."""

    first: int  # number of the first line
    hashes: str  # base64


class Done(msgspec.Struct, frozen=True, kw_only=True, tag="done", omit_defaults=True):
    """One request that is finished, and where its result is."""

    line: int
    custom_id: str
    failed: bool = False  # whether it is in the errors file
    at: int  # byte in that file
    size: int  # bytes, with the line's end
    sum: int  # xxh3, 64 bits, of these bytes
    status: int | None = None  # of HTTP; None: there was no answer
    attempts: int = 1
    reasons: tuple[str, ...] = ()  # of attempts that failed


class Again(msgspec.Struct, frozen=True, kw_only=True, tag="again"):
    """Requests that failed before this record are not finished any more; the errors file begins anew."""

    num_failed: int


Record = Header | LineHashes | Done | Again
_decoder: msgspec.json.Decoder[Record] = msgspec.json.Decoder(Record)
_encode = msgspec.json.Encoder().encode


def to_line(record: Record) -> bytes:
    """Return the record as a line of the ledger."""
    text = _encode(record)
    return b"%016x %s\n" % (xxhash.xxh3_64_intdigest(text), text)


def from_line(line: bytes) -> Record | None:
    """Return the record of a line, or None for one that is torn."""
    text = line[17:-1]
    if line[-1:] != b"\n" or line[:17] != b"%016x " % xxhash.xxh3_64_intdigest(text):
        return None
    return _decoder.decode(text)


def header_lines(header: Header, fingerprint: Fingerprint) -> Iterator[bytes]:
    """Yield what a ledger begins with."""
    yield to_line(header)
    hashes = fingerprint.hashes
    for start in range(0, len(hashes), _HASHES_A_LINE):
        some = base64.b64encode(pack(hashes[start : start + _HASHES_A_LINE])).decode()
        yield to_line(LineHashes(first=start + 1, hashes=some))


def hashes_of(record: LineHashes) -> array[int]:
    """Return the hashes in a record."""
    return unpack(base64.b64decode(record.hashes))
