"""What two MPI endpoints say to each other besides the bytes of KV, and how an endpoint describes itself."""

from __future__ import annotations

import array
from collections.abc import Sequence

import msgspec

from hpcserve.errors import KVError
from hpcserve.kv.memory import Range
from hpcserve.kv.messages import Message


class Place(msgspec.Struct, frozen=True, array_like=True, tag="mpi"):
    """An endpoint, as `describe` names it."""

    world: str
    rank: int
    endpoint: int  # tag of its control messages
    nonce: int  # this very endpoint: ranks live on, endpoints are opened and closed
    host: str
    pid: int
    started: int  # of the process, in the kernel's ticks
    sizes: tuple[int, ...]  # of its regions, bytes
    pack_bytes: int  # see `Memory`


class Ask(msgspec.Struct, frozen=True, array_like=True, tag="ask"):
    """Send me these ranges."""

    pull: int
    nonce: int  # of the endpoint that is asked
    reply_to: int  # endpoint of the asker
    tag: int  # of the data messages
    counts: bytes  # ranges of each message, as 32-bit numbers
    ranges: bytes  # region, offset and size of all ranges, as 64-bit numbers


class Stop(msgspec.Struct, frozen=True, array_like=True, tag="stop"):
    """Send no more for this pull, and say how much there was."""

    pull: int
    reply_to: int
    tag: int


class End(msgspec.Struct, frozen=True, array_like=True, tag="end"):
    """No more comes for this pull."""

    pull: int
    tag: int
    num_sent: int | None  # messages; None: all
    reason: str  # empty: as you wished


class Note(msgspec.Struct, frozen=True, array_like=True, tag="note"):
    """What `KVTransport.poll` returns at the other end."""

    nonce: int
    body: bytes


Control = Ask | Stop | End | Note

encode = msgspec.msgpack.encode
_decode_control = msgspec.msgpack.Decoder(Control).decode
_decode_place = msgspec.msgpack.Decoder(Place).decode


def decode_control(data: bytes | bytearray) -> Control:
    """Return the message. Raises `KVError` for what is none."""
    try:
        return _decode_control(data)  # type: ignore[no-any-return]  # a Control
    except msgspec.MsgspecError as err:
        raise KVError(f"not a message of an MPI endpoint: {err}") from err


def read_place(description: bytes) -> Place:
    """Return what `describe` of an MPI endpoint wrote. Raises `KVError` for anything else."""
    try:
        return _decode_place(description)
    except msgspec.MsgspecError as err:
        raise KVError(f"this does not describe an MPI endpoint: {err}") from err


def pack_ranges(messages: Sequence[Message]) -> tuple[bytes, bytes]:
    """Return `counts` and `ranges` of an `Ask`."""
    counts = array.array("I", (len(message.remote) for message in messages))
    numbers = array.array("Q", (number for message in messages for item in message.remote for number in item))
    return counts.tobytes(), numbers.tobytes()


def unpack_ranges(ask: Ask) -> list[list[Range]]:
    """Return the ranges of each message. Raises `KVError` if the two fields do not fit each other."""
    counts, numbers = array.array("I"), array.array("Q")
    try:
        counts.frombytes(ask.counts)
        numbers.frombytes(ask.ranges)
    except ValueError as err:
        raise KVError("ranges are cut off") from err
    if 3 * sum(counts) != len(numbers) or not all(counts):
        raise KVError(f"{len(counts)} messages of {sum(counts)} ranges with {len(numbers)} numbers")
    triples = iter(zip(*[iter(numbers)] * 3, strict=True))
    return [[Range(*next(triples)) for _ in range(count)] for count in counts]
