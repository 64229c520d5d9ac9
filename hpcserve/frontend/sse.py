"""One streamed HTTP response: events go straight to the client's transport, one write a delta and no task switch.

aiohttp's `StreamResponse.write` is a coroutine a chunk; here only headers and the end of the response go through it.
The headers are sent with the first event, so that what fails before it can still be answered with a status of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext

import msgspec
from aiohttp import HttpVersion11, web

log = logging.getLogger(__name__)

MAX_UNREAD_BYTES = 1 << 20
_FLUSH_TIMEOUT_S = 60.0
_SMALL_BYTES = 16384
_HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

_encode = msgspec.json.Encoder().encode


class SseStream:
    """Sends events to one client. A client that leaves more than `MAX_UNREAD_BYTES` unread is dropped."""

    def __init__(
        self, request: web.Request, preamble: bytes, headers: Mapping[str, str], on_drop: Callable[[], None]
    ) -> None:
        """`preamble` precedes the first event; `on_drop` is called when the client is dropped."""
        self.response = _LateHeaders(headers={**_HEADERS, **headers})
        self._request = request
        self._on_drop = on_drop
        self._pending = [preamble]
        self._held = b""
        self._opening: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport | None = None  # once the headers are sent
        self._is_chunked = request.version >= HttpVersion11
        if self._is_chunked:
            self.response.enable_chunked_encoding()
        else:
            self.response.force_close()  # HTTP/1.0 knows the end of such a body by the end of the connection

    @property
    def has_started(self) -> bool:
        """Whether it is too late for another status."""
        return self._opening is not None

    def send_text(self, head: bytes, text: str, tail: bytes) -> None:
        """Send an event that is `text`, as a JSON string, between two constant parts."""
        self.send(b"%b%b%b" % (head, _encode(text), tail))

    def send(self, event: bytes) -> None:
        """Send a whole event. Does nothing when the client is gone; the handler is cancelled then."""
        transport = self._transport
        if transport is None:
            self._pending.append(event)
            if self._opening is None:
                self._opening = asyncio.get_running_loop().create_task(self._open())
            return
        if transport.is_closing():
            return
        transport.write(b"%x\r\n%b\r\n" % (len(event), event) if self._is_chunked else event)
        if transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            self._drop()

    def hold(self, event: bytes) -> None:
        """Keep an event back until `finish`, which is about to come: the two then share one write."""
        self._held = event

    async def finish(self, events: bytes) -> None:
        """Send what was held and the last events, and end the response. Raises `ConnectionError` if the client left."""
        events = self._held + events
        if self._opening is None:  # nothing was sent yet: everything goes out in one write
            events = self._pending.pop() + events
            await self.response.prepare(self._request)
            self._transport = self._request.transport
        try:
            async with asyncio.timeout(_FLUSH_TIMEOUT_S) if self._may_block(events) else nullcontext():
                if self._opening is not None:
                    await self._opening
                await self.response.write_eof(events)
        except TimeoutError:
            self._drop()
            raise ConnectionResetError("the client does not read") from None

    async def _open(self) -> None:
        try:
            await self.response.prepare(self._request)
            # From here on events may go out directly; the first ones do so together with the headers.
            self._transport = self._request.transport
            await self.response.write(b"".join(self._pending))
        except ConnectionError:
            return  # the client left: the handler's cancellation is on its way

    def _may_block(self, events: bytes) -> bool:
        # Timers cost more than the write; without unread bytes so few fit into the socket's buffer.
        transport = self._transport
        return transport is None or transport.get_write_buffer_size() > 0 or len(events) > _SMALL_BYTES

    def _drop(self) -> None:
        log.warning("dropped a client that left over %d bytes unread", MAX_UNREAD_BYTES)
        self._on_drop()
        if self._transport is not None:
            self._transport.abort()


class _LateHeaders(web.StreamResponse):
    """Sends its headers with the first bytes of the body, as aiohttp's own `Response` does."""

    _send_headers_immediately = False
