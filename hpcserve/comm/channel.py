"""One connection between two hpcserve processes: calls with answers, and one-way messages, many of them in one write.

It has a TLS connection of its own, beside Dask's and never through the scheduler. Bodies are msgpack by msgspec,
decoded by the receiver to the type it expects; nothing here unpickles. What frames look like is `wire`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

import msgspec

from hpcserve.comm.tls import Identity
from hpcserve.comm.wire import Frame, Wire
from hpcserve.errors import BadRequest, ConnectionLost, HpcserveError, Overloaded, RateLimited, Unavailable

log = logging.getLogger(__name__)

T = TypeVar("T")

_REPLY, _ERROR = "=", "!"


class _Fault(msgspec.Struct, array_like=True):
    kind: str
    message: str
    retry_after_s: float | None = None


_FAULTS: dict[str, type[HpcserveError]] = {
    cls.__name__: cls for cls in (BadRequest, RateLimited, Unavailable, Overloaded)
}
_decode_fault = msgspec.msgpack.Decoder(_Fault).decode


class Peer(Protocol):
    """What a process does with what the other side says. Methods run on the event loop and must not block it."""

    def on_call(self, op: str, body: msgspec.Raw) -> Awaitable[object]:
        """Return the answer to a call, or what will be it; it is cancelled if the connection ends before.

        Called in order with messages; a coroutine begins only later. An `HpcserveError` is raised at the caller. What
        the caller waits for no more goes on here: callers that give up say so in a message.
        """
        ...

    def on_message(self, op: str, body: msgspec.Raw) -> None:
        """Take a one-way message; messages of one connection arrive in the order they were sent."""
        ...

    def on_close(self) -> None:
        """The connection ended, for whatever reason; called once."""
        ...


class Channel:
    """One end of a connection. `run` owns it: it returns when the connection is over."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._calls: dict[int, asyncio.Future[msgspec.Raw]] = {}
        self._num_calls = 0
        self._answers: set[asyncio.Future[object]] = set()
        self.is_closed = False

    @property
    def peer_address(self) -> str:
        """Address of the other side, for messages to people."""
        return self._wire.peer_address

    def send(self, op: str, body: object) -> None:
        """Send a one-way message soon. Lost without a word if the connection is over: `on_close` tells."""
        if not self.is_closed:
            self._wire.send(op, 0, body)

    async def call(self, op: str, body: object, reply: type[T], *, timeout_s: float) -> T:
        """Ask and return the answer. Raises `ConnectionLost` (also after `timeout_s`) or what the other side raised."""
        if self.is_closed:
            raise ConnectionLost(f"connection to {self.peer_address} is closed")
        self._num_calls += 1
        number = self._num_calls
        loop = asyncio.get_running_loop()
        answer = self._calls[number] = loop.create_future()
        self._wire.send(op, number, body)
        late = loop.call_later(timeout_s, self._give_up, answer, op, timeout_s)
        try:
            return msgspec.msgpack.decode(await answer, type=reply)
        finally:
            late.cancel()
            self._calls.pop(number, None)

    async def run(self, peer: Peer) -> None:
        """Read and write until the connection ends; then fail what waits, and tell the peer."""
        self._wire.listen(lambda frame: self._take(frame, peer))
        try:
            await self._wire.over
        finally:
            self.close()
            for pending in self._answers:
                pending.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.gather(*self._answers, return_exceptions=True)
            for answer in self._calls.values():
                if not answer.done():
                    answer.set_exception(ConnectionLost(f"connection to {self.peer_address} was lost"))
            peer.on_close()

    def close(self) -> None:
        """End the connection now; what was not written yet is dropped. Safe to call twice."""
        self.is_closed = True
        self._wire.abort()

    async def flush(self, timeout_s: float = 1.0) -> None:
        """Wait until everything sent so far was handed to the socket, at most `timeout_s`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._wire.written.wait()

    def _take(self, frame: Frame, peer: Peer) -> None:
        if not frame.call:
            peer.on_message(frame.op, frame.body)
        elif frame.op in (_REPLY, _ERROR):
            self._settle(frame)
        else:
            answer = _ask(frame, peer)
            self._answers.add(answer)
            answer.add_done_callback(partial(self._answer, frame))

    def _settle(self, frame: Frame) -> None:
        answer = self._calls.get(frame.call)
        if answer is None or answer.done():
            return
        if frame.op == _REPLY:
            answer.set_result(frame.body)
        else:
            fault = _decode_fault(frame.body)
            kind = _FAULTS.get(fault.kind, HpcserveError)
            answer.set_exception(kind(fault.message, retry_after_s=fault.retry_after_s))

    def _answer(self, frame: Frame, answer: asyncio.Future[object]) -> None:
        self._answers.discard(answer)
        if answer.cancelled() or self.is_closed:
            return
        error = answer.exception()
        if error is None:
            self._wire.send(_REPLY, frame.call, answer.result())
            return
        if isinstance(error, HpcserveError):
            fault = _Fault(type(error).__name__, error.message, error.retry_after_s)
        else:
            log.error("call %r from %s failed", frame.op, self.peer_address, exc_info=error)
            fault = _Fault("HpcserveError", f"call {frame.op!r} failed; see the log of the other side")
        self._wire.send(_ERROR, frame.call, fault)

    def _give_up(self, answer: asyncio.Future[msgspec.Raw], op: str, timeout_s: float) -> None:
        if not answer.done():
            late = f"{self.peer_address} did not answer {op!r} within {timeout_s:g} s"
            answer.set_exception(ConnectionLost(late))


def _ask(frame: Frame, peer: Peer) -> asyncio.Future[object]:
    try:
        return asyncio.ensure_future(peer.on_call(frame.op, frame.body))
    except Exception as err:  # noqa: BLE001  belongs to the caller; the connection has to go on
        failed = asyncio.get_running_loop().create_future()
        failed.set_exception(err)
        return failed


class Listener:
    """Accepts connections; each gets a peer of its own and runs until it ends or the listener is closed."""

    def __init__(self, make_peer: Callable[[Channel], Peer], identity: Identity) -> None:
        self._make_peer = make_peer
        self._identity = identity
        self._server: asyncio.Server | None = None
        self._channels: set[Channel] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self, host: str, port: int = 0) -> str:
        """Listen on `host`, by itself on a free port, and return the address, tls://host:port. Raises `OSError`."""
        loop = asyncio.get_running_loop()
        context = self._identity.server_context()
        self._server = await loop.create_server(lambda: Wire(self._accept), host, port, ssl=context)
        bound, port = self._server.sockets[0].getsockname()[:2]
        return f"tls://[{bound}]:{port}" if ":" in bound else f"tls://{bound}:{port}"

    async def close(self) -> None:
        """Stop accepting and end every connection."""
        if self._server is not None:
            self._server.close()
        for channel in list(self._channels):
            channel.close()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5.0)

    def _accept(self, wire: Wire) -> None:
        channel = Channel(wire)
        self._channels.add(channel)
        task = asyncio.get_running_loop().create_task(channel.run(self._make_peer(channel)))
        self._tasks.add(task)
        task.add_done_callback(partial(self._ended, channel))

    def _ended(self, channel: Channel, task: asyncio.Task[Any]) -> None:
        self._channels.discard(channel)
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the connection from %s failed", channel.peer_address, exc_info=error)


async def connect(address: str, identity: Identity, *, timeout_s: float) -> Channel:
    """Open a channel; the caller runs it. Raises `ConnectionLost` saying whom it could not reach and why."""
    try:
        host, port = _host_and_port(address)
        context = identity.client_context()
        async with asyncio.timeout(timeout_s):
            _, wire = await asyncio.get_running_loop().create_connection(
                lambda: Wire(lambda _: None), host, port, ssl=context
            )
    except TimeoutError:
        raise ConnectionLost(f"cannot reach {address}: no answer within {timeout_s:g} s") from None
    except (OSError, ValueError) as err:
        raise ConnectionLost(f"cannot reach {address}: {err}") from err
    return Channel(wire)


def _host_and_port(address: str) -> tuple[str, int]:
    url = urlsplit(address)
    if url.scheme != "tls" or url.hostname is None or url.port is None:
        raise ValueError("not of the form tls://host:port")
    return url.hostname, url.port
