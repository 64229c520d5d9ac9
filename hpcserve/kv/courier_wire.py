"""What an engine's process and its courier say to each other over a Unix socket. KV goes through shared memory."""

from __future__ import annotations

import msgspec

from hpcserve.errors import KVError
from hpcserve.kv.memory import Range
from hpcserve.kv.transport import Copy

SHARED_BYTES = 128 << 20
"""Shared memory of one engine process: half for what is sent, half for what is received."""
PACK_BYTES = 4 << 20


class Register(msgspec.Struct, frozen=True, array_like=True, tag="register"):
    """First, with the shared memory's file descriptor beside it."""

    sizes: tuple[int, ...]
    timeout_s: float


class Pull(msgspec.Struct, frozen=True, array_like=True, tag="pull"):
    """See `KVTransport.pull`."""

    pull: int
    peer: bytes
    copies: tuple[Copy, ...]
    note: bytes


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag="cancel"):
    """See `KVTransport.cancel`."""

    pull: int


class Tell(msgspec.Struct, frozen=True, array_like=True, tag="tell"):
    """See `KVTransport.notify`."""

    peer: bytes
    note: bytes


class Done(msgspec.Struct, frozen=True, array_like=True, tag="done"):
    """A `Load` or a `Store` is over."""

    id: int
    error: str


class Bye(msgspec.Struct, frozen=True, array_like=True, tag="bye"):
    """The transport is closed; the courier closes the connection when nothing is under way any more."""


class Registered(msgspec.Struct, frozen=True, array_like=True, tag="registered"):
    """The answer to `Register`."""

    description: bytes
    path: str
    error: str = ""


class Load(msgspec.Struct, frozen=True, array_like=True, tag="load"):
    """Copy these ranges into shared memory."""

    id: int
    offset: int
    ranges: tuple[Range, ...]


class Store(msgspec.Struct, frozen=True, array_like=True, tag="store"):
    """Copy shared memory into these ranges."""

    id: int
    offset: int
    ranges: tuple[Range, ...]


class Over(msgspec.Struct, frozen=True, array_like=True, tag="over"):
    """See `Finished`."""

    pull: int
    error: str | None


class Heard(msgspec.Struct, frozen=True, array_like=True, tag="heard"):
    """A note."""

    note: bytes


FromEngine = Register | Pull | Cancel | Tell | Done | Bye
FromCourier = Registered | Load | Store | Over | Heard

encode = msgspec.msgpack.encode
_decode_from_engine = msgspec.msgpack.Decoder(FromEngine).decode
_decode_from_courier = msgspec.msgpack.Decoder(FromCourier).decode


def from_engine(frame: bytes) -> FromEngine:
    """Return the message. Raises `KVError` for what is none."""
    try:
        return _decode_from_engine(frame)  # type: ignore[no-any-return]  # one of the union
    except msgspec.MsgspecError as err:
        raise KVError(f"not a message of an engine: {err}") from err


def from_courier(frame: bytes) -> FromCourier:
    """Return the message. Raises `KVError` for what is none."""
    try:
        return _decode_from_courier(frame)  # type: ignore[no-any-return]  # one of the union
    except msgspec.MsgspecError as err:
        raise KVError(f"not a message of a courier: {err}") from err
