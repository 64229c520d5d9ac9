"""Frames over one TLS connection: what is sent in one turn of the event loop leaves in one write.

A frame is four bytes of length, little-endian, and a msgpack array of op, number of the call (0: one-way) and body. It
knows nothing of who answers what; that is `channel`. Built on asyncio's own transports, which uvloop makes cheap:
`distributed.comm` costs ten times as much a message, and every frontend the memory of Dask.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import cast

import msgspec

_LENGTH_BYTES = 4
_SILENCE_S = 20
"""A connection whose other end acknowledges nothing for so long, not even that it is there, is over."""

_encode = msgspec.msgpack.Encoder().encode


class Frame(msgspec.Struct, array_like=True, gc=False):
    """One message, call or answer."""

    op: str
    call: int  # 0: one-way
    body: msgspec.Raw


_decode_frame = msgspec.msgpack.Decoder(Frame).decode


class Wire(asyncio.Protocol):
    """One end of a connection. It begins with the TLS handshake done, and reads only once `listen` was called."""

    def __init__(self, on_open: Callable[[Wire], None]) -> None:
        """`on_open` is called when the connection stands."""
        self._on_open = on_open
        self._on_frame: Callable[[Frame], None] | None = None
        self._transport: asyncio.Transport | None = None
        self._partial = bytearray()  # the beginning of a frame
        self._outbox = bytearray()
        self._is_flushing = False
        self._loop = asyncio.get_running_loop()
        self.peer_address = "?"
        self.written = asyncio.Event()  # set while everything sent was handed to the socket
        self.written.set()
        self.over: asyncio.Future[None] = self._loop.create_future()  # done when the connection is; may have failed

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = both_ways = cast(asyncio.Transport, transport)  # uvloop's own classes derive from nothing
        both_ways.set_write_buffer_limits(high=0)
        both_ways.pause_reading()
        _notice_silence(both_ways)
        host, port = transport.get_extra_info("peername")[:2]
        self.peer_address = f"tls://[{host}]:{port}" if ":" in host else f"tls://{host}:{port}"
        self._on_open(self)

    def listen(self, on_frame: Callable[[Frame], None]) -> None:
        """Begin to read. What `on_frame` raises ends the connection, and is raised by `over`."""
        self._on_frame = on_frame
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def send(self, op: str, call: int, body: object) -> None:
        """Send a frame at the end of this turn of the loop. Raises what msgspec raises for a body it cannot encode."""
        frame = _encode((op, call, body))
        self._outbox += len(frame).to_bytes(_LENGTH_BYTES, "little")
        self._outbox += frame
        if not self._is_flushing:
            self._is_flushing = True
            self.written.clear()
            self._loop.call_soon(self._flush)

    def abort(self) -> None:
        """End the connection now. Safe to call twice."""
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Hand over every frame that is complete."""
        if self._partial:
            self._partial += data
            if len(self._partial) < _LENGTH_BYTES + int.from_bytes(self._partial[:_LENGTH_BYTES], "little"):
                return
            data, self._partial = bytes(self._partial), bytearray()
        try:
            self._take(data)
        except Exception as err:  # noqa: BLE001  raised where the connection is run
            if not self.over.done():
                self.over.set_exception(err)
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end. Why it ended differs by platform, and makes no difference."""
        self.written.set()
        if not self.over.done():
            self.over.set_result(None)

    def pause_writing(self) -> None:
        """The socket takes no more for the moment."""
        self.written.clear()

    def resume_writing(self) -> None:
        """Everything was handed to the socket."""
        if not self._outbox:
            self.written.set()

    def _flush(self) -> None:
        self._is_flushing = False
        data, self._outbox = self._outbox, bytearray()
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        self.written.set()  # unless the transport says otherwise
        transport.write(data)

    def _take(self, data: bytes) -> None:
        assert self._on_frame is not None
        view, start, size = memoryview(data), 0, len(data)
        while size - start >= _LENGTH_BYTES:
            begin = start + _LENGTH_BYTES
            end = begin + int.from_bytes(data[start:begin], "little")
            if end > size:
                break
            self._on_frame(_decode_frame(view[begin:end]))
            start = end
        if start < size:
            self._partial += view[start:]


def _notice_silence(transport: asyncio.Transport) -> None:
    """Have the kernel end a connection across which nothing comes any more: a node without power says no goodbye.

    Its other end's kernel answers, however busy or stopped the process is. See tcp(7), and RFC 5482 for the timeout.
    """
    sock, tcp = transport.get_extra_info("socket"), socket.IPPROTO_TCP
    with suppress(OSError):  # it is over already
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(tcp, socket.TCP_KEEPIDLE, max(1, _SILENCE_S // 4))
        sock.setsockopt(tcp, socket.TCP_KEEPINTVL, max(1, _SILENCE_S // 4))
        sock.setsockopt(tcp, socket.TCP_USER_TIMEOUT, _SILENCE_S * 1000)
