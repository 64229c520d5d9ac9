"""What the two halves of the transport connector say to each other, and to the peers' halves, in handles and notes.

A lease keeps the blocks of a handle. Its id is random and never used twice, and lies in the source's memory, in its
slot of a table that peers can read, for as long as the blocks are kept: whoever read blocks and then finds the id there
knows that they were what the handle said. No clocks are compared, and the source need not answer.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import msgspec

from hpcserve.engine.vllm.kv_layout import Layout
from hpcserve.engine.vllm.translate import VIA
from hpcserve.kv.transport import TransportKind

NUM_LEASES = 4096
"""Slots of an engine's table."""
_SOURCE = "hpcserve_source"


class Lease(NamedTuple):
    """The right to read the blocks of one request."""

    slot: int
    id: int  # never 0, which stands for an empty slot


@dataclass(frozen=True)
class End:
    """One worker process of an engine, as its peers need to know it."""

    description: bytes  # of its transport
    layout: Layout


class Source(msgspec.Struct, frozen=True):
    """What a handle says: where the blocks of a prompt are."""

    lease: Lease
    blocks: list[int]
    ends: list[str]  # descriptions by tensor-parallel rank, base64
    layout: Layout

    def end(self, rank: int) -> bytes:
        """Return the description of the peer's worker of this rank."""
        return b64decode(self.ends[rank])


class Note(msgspec.Struct, frozen=True, array_like=True):
    """Told to a source. keep: we still want it; done: we have it, or want it no more."""

    kind: Literal["keep", "done"]
    lease: int


@dataclass(frozen=True)
class Pull:
    """Blocks that a request waits for."""

    request_id: str
    source: Source
    remote_blocks: list[int]
    local_blocks: list[int]


@dataclass
class Orders:
    """What the scheduler's half wants of the workers' after a step."""

    granted: dict[str, Lease] = field(default_factory=dict)  # by request; its blocks are being computed
    dropped: list[Lease] = field(default_factory=list)  # nobody will come for them
    sent: list[str] = field(default_factory=list)  # the handle is on its way: keep the blocks
    pulls: list[Pull] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    kept: list[Source] = field(default_factory=list)  # requests still wait for these
    unwanted: list[Source] = field(default_factory=list)


def make_params(transport: TransportKind, lease: Lease, blocks: list[int], ends: Mapping[int, End]) -> dict[str, Any]:
    """Return the transfer parameters of a handle, made of plain values."""
    source = Source(
        lease=lease,
        blocks=blocks,
        ends=[b64encode(ends[rank].description).decode() for rank in sorted(ends)],
        layout=ends[0].layout,
    )
    params = {"do_remote_prefill": True, "do_remote_decode": False, VIA: transport}
    return params | {_SOURCE: msgspec.to_builtins(source)}


def read_params(params: Mapping[str, Any]) -> Source:
    """Return what a handle's parameters say. Raises `ValueError` for those that are none of ours."""
    try:
        return msgspec.convert(params.get(_SOURCE), Source)
    except msgspec.ValidationError as err:
        raise ValueError(f"the handle is not one of this transport's ({err})") from err


def encode_note(kind: Literal["keep", "done"], lease: Lease) -> bytes:
    """Return a note's bytes."""
    return msgspec.msgpack.encode(Note(kind, lease.id))


def read_note(body: bytes) -> Note:
    """Return a note of `encode_note`. Raises `ValueError` for anything else."""
    try:
        return msgspec.msgpack.decode(body, type=Note)
    except msgspec.DecodeError as err:
        raise ValueError(f"a note that means nothing: {body[:40]!r}") from err
