"""The agent's side of the data plane: requests in, deltas out, straight from and to frontends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec

from hpcserve.agent.preflight import Exhibition
from hpcserve.agent.streams import Stream
from hpcserve.comm.channel import Channel, Listener
from hpcserve.comm.tls import Identity
from hpcserve.engine.protocol import AsyncEngine
from hpcserve.engine.push import run_of
from hpcserve.errors import BadRequest, EngineError
from hpcserve.types import EngineOutput, EngineRequest, RequestId

log = logging.getLogger(__name__)

_decode_request = msgspec.msgpack.Decoder(EngineRequest).decode
_decode_id = msgspec.msgpack.Decoder(RequestId).decode


class DataPlane:
    """Runs the requests that frontends send on one engine. A connection that ends takes its requests with it."""

    def __init__(
        self,
        engine: AsyncEngine,
        identity: Identity,
        on_request: Callable[[EngineRequest], None] | None = None,
        exhibition: Exhibition | None = None,
        *,
        moves_kv: bool = True,
    ) -> None:
        """`on_request` is told of each request before the engine is. `exhibition`: what other agents check KV with."""
        self._run = run_of(engine)
        self._on_request = on_request
        self.exhibition = exhibition
        self._listener = Listener(self._open_session, identity)
        self._engine = engine
        self.moves_kv = moves_kv
        self.streams: set[Stream] = set()  # that run now
        self._handed_over: set[RequestId] = set()  # whose KV was not fetched yet
        self._all_taken = asyncio.Event()
        self._all_taken.set()
        self._idle = asyncio.Event()
        self._idle.set()
        self.engine_died: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def start(self, host: str) -> str:
        """Listen on `host` and return the address for frontends."""
        return await self._listener.start(host)

    async def drained(self, timeout_s: float) -> bool:
        """Wait until no request runs; False if `timeout_s` went by first."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def part(self, stream: Stream) -> None:
        """Have a request leave, with its KV where that moves; return when the frontend was told."""
        await stream.part(self._engine)

    async def all_taken(self, timeout_s: float) -> bool:
        """Wait until the KV of all that left was fetched, or is not wanted; False if `timeout_s` went by first."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._all_taken.wait()
        except TimeoutError:
            return False
        return True

    def taken(self, request_id: RequestId) -> None:
        """The KV of a request that left was fetched, or nobody wants it any more. Unknown ones are ignored."""
        self._handed_over.discard(request_id)
        if not self._handed_over:
            self._all_taken.set()

    async def close(self) -> None:
        """End every connection; frontends re-assign what still ran."""
        await self._listener.close()

    def note_death(self, why: str) -> None:
        """Set `engine_died`, the first time."""
        if not self.engine_died.done():
            self.engine_died.set_result(why)

    def _open_session(self, channel: Channel) -> _Session:
        return _Session(self, channel)

    async def run(self, request: EngineRequest, outbox: _Outbox) -> None:
        """Run one request and send its outputs. A dead engine sets `engine_died` and ends the connection."""
        stream = Stream(request, outbox.put)
        self.streams.add(stream)
        self._idle.clear()
        if self._on_request is not None:
            self._on_request(request)
        log.debug("%s begins: prompt of %d tokens", request.request_id, len(request.token_ids))
        try:
            await self._run(request, stream.take)
            if stream.is_cut and await stream.leave(self._run, with_kv=self.moves_kv):
                self._handed_over.add(request.request_id)
                self._all_taken.clear()
                outbox.handed_over.add(request.request_id)
        except EngineError as err:
            log.error("%s: engine died: %s", request.request_id, err.message)
            self.note_death(err.message)
            outbox.channel.close()
        except asyncio.CancelledError:
            raise
        except Exception as err:
            log.exception("request %s failed in the engine", request.request_id)
            failed = EngineOutput(request_id=request.request_id, finish_reason="error", error=f"engine failed: {err!r}")
            outbox.put(failed)
        finally:
            stream.end()
            self.streams.discard(stream)
            if not self.streams:
                self._idle.set()


class _Outbox:
    """What goes to one frontend. The outputs of a turn of the event loop, so of an engine's step, are one message."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.handed_over: set[RequestId] = set()  # requests that left with their KV
        self._outputs: list[EngineOutput] = []
        self._loop = asyncio.get_running_loop()

    def put(self, output: EngineOutput) -> None:
        if not self._outputs:
            self._loop.call_soon(self._send)
        self._outputs.append(output)

    def _send(self) -> None:
        outputs, self._outputs = self._outputs, []
        self.channel.send("outputs", outputs)


class _Session:
    """One frontend's connection."""

    def __init__(self, plane: DataPlane, channel: Channel) -> None:
        self._plane = plane
        self._channel = channel
        self._outbox = _Outbox(channel)
        self._running: dict[RequestId, asyncio.Task[None]] = {}

    async def on_call(self, op: str, body: msgspec.Raw) -> object:
        exhibition = self._plane.exhibition
        if op != "preflight" or exhibition is None:
            raise BadRequest(f"agents answer no call {op!r}")
        return await exhibition.show(self)

    def on_message(self, op: str, body: msgspec.Raw) -> None:
        if op == "generate":
            self._generate(_decode_request(body))
        elif op == "abort":
            task = self._running.get(_decode_id(body))
            if task is not None:
                task.cancel()
        elif op == "taken":
            self._plane.taken(_decode_id(body))
        else:
            log.warning("ignored a message %r from %s", op, self._channel.peer_address)

    def on_close(self) -> None:
        for task in self._running.values():
            task.cancel()
        for request_id in self._outbox.handed_over:
            self._plane.taken(request_id)
        if self._plane.exhibition is not None:
            self._plane.exhibition.leave(self)

    def _generate(self, request: EngineRequest) -> None:
        task = asyncio.create_task(self._plane.run(request, self._outbox), name=f"generate {request.request_id}")
        self._running[request.request_id] = task
        task.add_done_callback(lambda _: self._running.pop(request.request_id, None))
