"""One connection between two hpcserve processes: calls with answers, one-way messages, many of them in one write.

It rides on `distributed.comm` (TLS, uvloop), beside Dask's own connections and never through the scheduler's. What is
sent while a write is under way travels together in the next: the deltas of an engine step are one message. Bodies are
msgpack by msgspec, decoded by the receiver to the type it expects; nothing here unpickles.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec

from hpcserve.errors import BadRequest, ConnectionLost, HpcserveError, Overloaded, RateLimited, Unavailable

if TYPE_CHECKING:
    from distributed import Security

log = logging.getLogger(__name__)

T = TypeVar("T")

_REPLY, _ERROR = "=", "!"
_encoder = msgspec.msgpack.Encoder()


class _Frame(msgspec.Struct, array_like=True):
    op: str
    call: int  # 0: one-way
    body: msgspec.Raw


class _Fault(msgspec.Struct, array_like=True):
    kind: str
    message: str
    retry_after_s: float | None = None


_FAULTS: dict[str, type[HpcserveError]] = {
    cls.__name__: cls for cls in (BadRequest, RateLimited, Unavailable, Overloaded)
}
_decode_frames = msgspec.msgpack.Decoder(list[_Frame]).decode
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

    def __init__(self, comm: Any) -> None:
        self._comm = comm
        self._outbox: list[_Frame] = []
        self._wake = asyncio.Event()
        self._calls: dict[int, asyncio.Future[msgspec.Raw]] = {}
        self._num_calls = 0
        self._answers: set[asyncio.Future[object]] = set()
        self._drained = asyncio.Event()
        self._drained.set()
        self.is_closed = False

    @property
    def peer_address(self) -> str:
        """Address of the other side, for messages to people."""
        return str(self._comm.peer_address)

    def send(self, op: str, body: object) -> None:
        """Send a one-way message soon. Lost without a word if the connection is over: `on_close` tells."""
        self._post(_Frame(op, 0, msgspec.Raw(_encoder.encode(body))))

    async def call(self, op: str, body: object, reply: type[T], *, timeout_s: float) -> T:
        """Ask and return the answer. Raises `ConnectionLost` (also after `timeout_s`) or what the other side raised."""
        if self.is_closed:
            raise ConnectionLost(f"connection to {self.peer_address} is closed")
        self._num_calls += 1
        number = self._num_calls
        answer = self._calls[number] = asyncio.get_running_loop().create_future()
        self._post(_Frame(op, number, msgspec.Raw(_encoder.encode(body))))
        try:
            async with asyncio.timeout(timeout_s):
                raw = await answer
        except TimeoutError:
            raise ConnectionLost(f"{self.peer_address} did not answer {op!r} within {timeout_s:g} s") from None
        finally:
            self._calls.pop(number, None)
        return msgspec.msgpack.decode(raw, type=reply)

    async def run(self, peer: Peer) -> None:
        """Read and write until the connection ends; then fail what waits, and tell the peer."""
        writer = asyncio.create_task(self._write_loop())
        try:
            await self._read_loop(peer)
        finally:
            self.is_closed = True
            writer.cancel()
            for pending in self._answers:
                pending.cancel()
            self._comm.abort()
            with suppress(asyncio.CancelledError):
                await asyncio.gather(writer, *self._answers, return_exceptions=True)
            for answer in self._calls.values():
                if not answer.done():
                    answer.set_exception(ConnectionLost(f"connection to {self.peer_address} was lost"))
            peer.on_close()

    def close(self) -> None:
        """End the connection now; what was not written yet is dropped. Safe to call twice."""
        self.is_closed = True
        self._comm.abort()

    async def flush(self, timeout_s: float = 1.0) -> None:
        """Wait until everything sent so far was handed to the socket, at most `timeout_s`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._drained.wait()

    def _post(self, frame: _Frame) -> None:
        if not self.is_closed:
            self._outbox.append(frame)
            self._drained.clear()
            self._wake.set()

    async def _write_loop(self) -> None:
        while True:
            await self._wake.wait()
            frames, self._outbox = self._outbox, []
            try:
                await self._comm.write(_encoder.encode(frames))
            except Exception as err:  # noqa: BLE001  the socket's errors differ by transport; all mean the same
                log.debug("write to %s failed: %r", self.peer_address, err)
                self._comm.abort()
                self._drained.set()
                return
            if not self._outbox:
                self._wake.clear()
                self._drained.set()

    async def _read_loop(self, peer: Peer) -> None:
        from distributed.comm import CommClosedError

        while True:
            try:
                message = await self._comm.read()
            except (CommClosedError, OSError):
                return
            for frame in _decode_frames(message):
                self._take(frame, peer)

    def _take(self, frame: _Frame, peer: Peer) -> None:
        if frame.op in (_REPLY, _ERROR):
            self._settle(frame)
        elif frame.call:
            answer = _ask(frame, peer)
            self._answers.add(answer)
            answer.add_done_callback(partial(self._answer, frame))
        else:
            peer.on_message(frame.op, frame.body)

    def _settle(self, frame: _Frame) -> None:
        answer = self._calls.get(frame.call)
        if answer is None or answer.done():
            return
        if frame.op == _REPLY:
            answer.set_result(frame.body)
        else:
            fault = _decode_fault(frame.body)
            kind = _FAULTS.get(fault.kind, HpcserveError)
            answer.set_exception(kind(fault.message, retry_after_s=fault.retry_after_s))

    def _answer(self, frame: _Frame, answer: asyncio.Future[object]) -> None:
        self._answers.discard(answer)
        if answer.cancelled():
            return
        error = answer.exception()
        if error is None:
            self._post(_Frame(_REPLY, frame.call, msgspec.Raw(_encoder.encode(answer.result()))))
            return
        if isinstance(error, HpcserveError):
            fault = _Fault(type(error).__name__, error.message, error.retry_after_s)
        else:
            log.error("call %r from %s failed", frame.op, self.peer_address, exc_info=error)
            fault = _Fault("HpcserveError", f"call {frame.op!r} failed; see the log of the other side")
        self._post(_Frame(_ERROR, frame.call, msgspec.Raw(_encoder.encode(fault))))


def _ask(frame: _Frame, peer: Peer) -> asyncio.Future[object]:
    try:
        return asyncio.ensure_future(peer.on_call(frame.op, frame.body))
    except Exception as err:  # noqa: BLE001  belongs to the caller; the connection has to go on
        failed = asyncio.get_running_loop().create_future()
        failed.set_exception(err)
        return failed


class Listener:
    """Accepts connections; each gets a peer of its own and runs until it ends or the listener is closed."""

    def __init__(self, make_peer: Callable[[Channel], Peer], security: Security) -> None:
        self._make_peer = make_peer
        self._security = security
        self._listener: Any = None
        self._channels: set[Channel] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self, host: str) -> str:
        """Listen on a free port of `host` and return the address, tls://host:port. Raises `OSError`."""
        from distributed.comm import listen

        self._listener = await listen(
            f"tls://{host}:0", self._accept, deserialize=False, **self._security.get_listen_args("worker")
        )
        return str(self._listener.contact_address)

    async def close(self) -> None:
        """Stop accepting and end every connection."""
        if self._listener is not None:
            stopped = self._listener.stop()
            if isinstance(stopped, Awaitable):
                await stopped
        for channel in list(self._channels):
            channel.close()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5.0)

    async def _accept(self, comm: Any) -> None:
        channel = Channel(comm)
        self._channels.add(channel)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await channel.run(self._make_peer(channel))
        finally:
            self._channels.discard(channel)
            self._tasks.discard(task)


async def connect(address: str, security: Security, *, timeout_s: float) -> Channel:
    """Open a channel; the caller runs it. Raises `ConnectionLost` saying whom it could not reach and why."""
    from distributed.comm import connect as comm_connect

    try:
        comm = await comm_connect(
            address, timeout=timeout_s, deserialize=False, **security.get_connection_args("worker")
        )
    except (OSError, ValueError, TypeError) as err:
        raise ConnectionLost(f"cannot reach {address}: {err}") from err
    return Channel(comm)
