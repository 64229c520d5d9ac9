"""A frontend's connections to node agents: one an agent, many requests on each."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from hpcserve.comm.channel import Channel, connect
from hpcserve.comm.tls import Identity
from hpcserve.errors import BadRequest, ConnectionLost, WorkerLost
from hpcserve.types import EngineOutput, EngineRequest, RequestId, WorkerId

log = logging.getLogger(__name__)

OnOutput = Callable[[EngineOutput], None]

_CONNECT_TIMEOUT_S = 3.0
_decode_outputs = msgspec.msgpack.Decoder(list[EngineOutput]).decode


@dataclass
class _Stream:
    on_output: OnOutput
    done: asyncio.Future[None]


class AgentLink:
    """One connection. Outputs reach their stream by a plain call as the message is read, without a task switch each."""

    def __init__(self, worker: WorkerId, channel: Channel) -> None:
        self._worker = worker
        self._channel = channel
        self._streams: dict[RequestId, _Stream] = {}
        self._running = asyncio.create_task(channel.run(self), name=f"data plane to {worker}")

    @property
    def is_closed(self) -> bool:
        """Whether a new connection is needed."""
        return self._channel.is_closed

    async def generate(self, request: EngineRequest, on_output: OnOutput) -> None:
        """Run a request to its last output. Raises `WorkerLost`; what `on_output` raises ends the request, too.

        Cancelling aborts it in the engine.
        """
        if self._channel.is_closed:
            raise WorkerLost(f"no connection to {self._worker}")
        stream = _Stream(on_output, asyncio.get_running_loop().create_future())
        self._streams[request.request_id] = stream
        self._channel.send("generate", request)
        try:
            await stream.done
        except WorkerLost:
            raise
        except BaseException:
            self._channel.send("abort", request.request_id)
            raise
        finally:
            self._streams.pop(request.request_id, None)

    def taken(self, request_id: RequestId) -> None:
        """Tell the agent that the KV of a request that left is not needed any more."""
        self._channel.send("taken", request_id)

    async def close(self) -> None:
        """End the connection; requests on it raise `WorkerLost`."""
        self._channel.close()
        await asyncio.wait((self._running,))

    async def on_call(self, op: str, body: msgspec.Raw) -> object:
        """Frontends answer no calls."""
        raise BadRequest(f"frontends answer no call {op!r}")

    def on_message(self, op: str, body: msgspec.Raw) -> None:
        """Hand outputs to their streams; those of aborted requests are dropped."""
        streams = self._streams
        for output in _decode_outputs(body):
            stream = streams.get(output.request_id)
            if stream is None:
                continue
            try:
                stream.on_output(output)
            except Exception as err:  # noqa: BLE001  belongs to whoever waits for the request
                self._end(output.request_id, err)
            else:
                if output.finish_reason is not None:
                    self._end(output.request_id)

    def on_close(self) -> None:
        """Fail what still ran."""
        for request_id in list(self._streams):
            self._end(request_id, WorkerLost(f"the connection to {self._worker} was lost"))

    def _end(self, request_id: RequestId, error: Exception | None = None) -> None:
        stream = self._streams.pop(request_id, None)
        if stream is None or stream.done.done():
            return
        if error is None:
            stream.done.set_result(None)
        else:
            stream.done.set_exception(error)


class AgentPool:
    """The links of one frontend, opened when first needed."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._links: dict[WorkerId, AgentLink] = {}
        self._opening: dict[WorkerId, asyncio.Lock] = {}
        self._closing: set[asyncio.Task[None]] = set()

    async def link(self, worker: WorkerId, address: str) -> AgentLink:
        """Return an open link. Raises `WorkerLost` if the agent cannot be reached."""
        link = self._links.get(worker)
        if link is not None and not link.is_closed:
            return link
        async with self._opening.setdefault(worker, asyncio.Lock()):
            link = self._links.get(worker)
            if link is None or link.is_closed:
                link = self._links[worker] = await self._open(worker, address)
            return link

    def taken(self, worker: WorkerId, request_id: RequestId) -> None:
        """Tell a worker that the KV of a request that left it is not needed any more, if there is a link to it."""
        link = self._links.get(worker)
        if link is not None and not link.is_closed:
            link.taken(request_id)

    def drop(self, worker: WorkerId) -> None:
        """Forget a worker that is over; requests that still run on it are lost there, and move."""
        self._opening.pop(worker, None)
        link = self._links.pop(worker, None)
        if link is not None:
            link.on_close()
            closing = asyncio.create_task(link.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    def known(self) -> list[WorkerId]:
        """Return the workers that there are links to."""
        return list(self._links)

    async def close(self) -> None:
        """End all links."""
        links, self._links = self._links, {}
        for link in links.values():
            await link.close()

    async def _open(self, worker: WorkerId, address: str) -> AgentLink:
        try:
            return AgentLink(worker, await connect(address, self._identity, timeout_s=_CONNECT_TIMEOUT_S))
        except ConnectionLost as err:
            raise WorkerLost(f"cannot reach {worker}: {err.message}") from err
