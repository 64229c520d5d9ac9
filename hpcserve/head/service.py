"""The head's channel: frontends ask where requests run, and everybody who watches is told when something changes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from hpcserve.comm.channel import Channel, Listener
from hpcserve.comm.protocol import FrontendInfo, Held, StopRequest
from hpcserve.comm.tls import Identity
from hpcserve.errors import BadRequest
from hpcserve.head.assigner import Assigner
from hpcserve.head.frontends import MetricsSum
from hpcserve.head.limits import LimitBook
from hpcserve.head.traffic import TrafficSum
from hpcserve.keys import Limits
from hpcserve.observability.samples import Samples
from hpcserve.planner import PlanReport
from hpcserve.router.router import Router
from hpcserve.types import Assignment, RequestId, RouteRequest, Status, Traffic, WorkerId

log = logging.getLogger(__name__)

_PUBLISH_INTERVAL_S = 0.1  # changes closer together than this are told at once
_LOADS_INTERVAL_S = 1.0  # the same where only loads have changed, which they do all the time

_decode_route = msgspec.msgpack.Decoder(RouteRequest).decode
_decode_name = msgspec.msgpack.Decoder(str).decode
_decode_begin = msgspec.msgpack.Decoder(tuple[str, Limits]).decode
_decode_tokens = msgspec.msgpack.Decoder(tuple[str, int]).decode
_decode_samples = msgspec.msgpack.Decoder(Samples).decode
_decode_traffic = msgspec.msgpack.Decoder(Traffic).decode
_decode_held = msgspec.msgpack.Decoder(list[Held]).decode
_decode_id = msgspec.msgpack.Decoder(RequestId).decode
_decode_finished = msgspec.msgpack.Decoder(tuple[RequestId, int]).decode


class HeadService:
    """Answers frontends and the CLI. Who asked for an assignment holds it; it is released if the connection ends."""

    def __init__(
        self,
        router: Router,
        identity: Identity,
        *,
        max_wait_s: float,
        make_status: Callable[[], Status],
        on_frontend: Callable[[FrontendInfo, bool], None],
        on_stop: Callable[[StopRequest], None],
        is_ours: Callable[[FrontendInfo], bool] = lambda _: True,
    ) -> None:
        """`max_wait_s` is what the router lets requests wait for.

        `on_frontend` is called with what a frontend says of itself, and whether it comes or goes. One that is not ours
        is told to end.
        """
        self.assigner = Assigner(router, max_wait_s, on_placed=self._tell_of_workers, on_tick=self.notify)
        self.make_status = make_status
        self.on_frontend = on_frontend
        self.on_stop = on_stop
        self.is_ours = is_ours
        self.make_plan: Callable[[], PlanReport] | None = None
        self.peers: set[_Peer] = set()
        self.traffic = TrafficSum()
        self.metrics = MetricsSum()
        self.limits = LimitBook()
        self.gathered = asyncio.Event()  # cleared, frontends are not let in yet: what they know is of more use to them
        self.gathered.set()
        self._listener = Listener(self._open, identity)
        self._changed = asyncio.Event()
        self._telling_loads: asyncio.TimerHandle | None = None
        self._told: set[WorkerId] = set()  # whose addresses everybody knows

    async def start(self, host: str, port: int = 0) -> str:
        """Listen, by itself on a free port, and return the address."""
        return await self._listener.start(host, port)

    async def close(self) -> None:
        """End every connection."""
        await self._listener.close()
        self.assigner.close()
        self._stop_telling_loads()

    def notify(self) -> None:
        """Workers or frontends have changed: place who can start now, and have the status told soon."""
        self.assigner.reconsider()
        self._changed.set()

    def note_load(self) -> None:
        """The load of a worker has changed: place who can start now, and have the status told within a second."""
        self.assigner.reconsider()
        if self._telling_loads is None:
            self._telling_loads = asyncio.get_running_loop().call_later(_LOADS_INTERVAL_S, self._changed.set)

    def refuse(self) -> None:
        """Take no new requests: the deployment goes down."""
        self.assigner.refuse()

    async def publish_loop(self) -> None:
        """Tell everybody of changes until cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            self.publish()
            await asyncio.sleep(_PUBLISH_INTERVAL_S)

    def publish(self) -> None:
        """Tell everybody the status now."""
        self._stop_telling_loads()
        if self.peers:
            status = self.make_status()
            self._told = {info.worker for info in status.workers if info.address is not None}
            for peer in self.peers:
                peer.channel.send("status", status)

    async def flush(self) -> None:
        """Wait a moment for what was told to be on its way."""
        await asyncio.gather(*(peer.channel.flush() for peer in self.peers))

    def _stop_telling_loads(self) -> None:
        if self._telling_loads is not None:
            self._telling_loads.cancel()
            self._telling_loads = None

    def _tell_of_workers(self, placed: Sequence[Assignment]) -> None:
        """Tell the status first if assignments name a worker that nobody knows yet, as one that has just come up."""
        named = {each.decode for each in placed} | {each.prefill for each in placed} | {each.source for each in placed}
        if named - self._told - {None}:
            self.publish()

    def _open(self, channel: Channel) -> _Peer:
        return _Peer(self, channel)


class _Peer:
    """A frontend or a CLI."""

    def __init__(self, service: HeadService, channel: Channel) -> None:
        self.channel = channel
        self._service = service
        self._held: set[RequestId] = set()
        self._frontend: FrontendInfo | None = None

    def on_call(self, op: str, body: msgspec.Raw) -> Awaitable[object]:
        if op == "assign":
            return self._assign(_decode_route(body))  # here and now: its "release" may be the next message
        return self._answer(op, body)

    def on_message(self, op: str, body: msgspec.Raw) -> None:
        if op == "prefilled":
            self._service.assigner.prefilled(_decode_id(body))
        elif op == "release":
            self._release(_decode_id(body))
        elif op == "finished":
            request_id, num_generated = _decode_finished(body)
            self._service.assigner.note_output(num_generated)
            self._release(request_id)
        elif op == "held":
            self._hold(_decode_held(body))
        elif op == "end":
            self._service.limits.end(self, _decode_name(body))
        elif op == "tokens":
            self._service.limits.count_tokens(*_decode_tokens(body))
        elif op == "samples":
            if self._frontend is not None:
                self._service.metrics.take(self._frontend.pid, _decode_samples(body))
        elif op == "report":
            self._service.traffic.take(self, _decode_traffic(body))
            self._service.notify()
        else:
            log.warning("ignored a message %r from %s", op, self.channel.peer_address)

    def on_close(self) -> None:
        self._service.peers.discard(self)
        self._service.traffic.leave(self)
        for request_id in self._held:
            self._service.assigner.release(request_id)
        self._service.limits.leave(self)
        if self._frontend is not None:
            self._service.metrics.leave(self._frontend.pid)
            self._service.on_frontend(self._frontend, False)

    def _release(self, request_id: RequestId) -> None:
        self._held.discard(request_id)
        self._service.assigner.release(request_id)

    def _hold(self, held: list[Held]) -> None:
        """Book what an earlier head had assigned."""
        for each in held:
            self._held.add(each.assignment.request_id)
            self._service.assigner.restore(each)

    def _assign(self, route: RouteRequest) -> Awaitable[Assignment]:
        answer = self._service.assigner.assign(route)
        self._held.add(route.request_id)
        return answer

    async def _answer(self, op: str, body: msgspec.Raw) -> object:
        match op:
            case "register":
                await self._service.gathered.wait()
                self._register(msgspec.msgpack.decode(body, type=FrontendInfo))
                return self._subscribe()
            case "begin":
                self._service.limits.begin(self, *_decode_begin(body))
                return None
            case "others":
                return self._service.metrics.others_than(self._frontend.pid if self._frontend else 0)
            case "plan" if self._service.make_plan is not None:
                return self._service.make_plan()
            case "subscribe":
                return self._subscribe()
            case "stop":
                self._service.on_stop(msgspec.msgpack.decode(body, type=StopRequest))
                return self._service.make_status()
        raise BadRequest(f"the head answers no call {op!r}")

    def _register(self, info: FrontendInfo) -> None:
        if self._service.is_ours(info):
            self._frontend = info
            self._service.on_frontend(info, True)
        else:
            log.warning("frontend %d of %s is not ours: telling it to end", info.pid, info.host)
            self.channel.send("retire", None)

    def _subscribe(self) -> Status:
        self._service.peers.add(self)
        return self._service.make_status()
