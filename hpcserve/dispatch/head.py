"""A frontend's connection to the head: assignments, and the newest status. Comes back by itself after a loss.

While there is no head, requests wait for the next one, for a bounded time. Streams need none.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import msgspec

from hpcserve.comm.channel import Channel, connect
from hpcserve.comm.protocol import FrontendInfo, Held
from hpcserve.comm.tls import Identity
from hpcserve.errors import BadRequest, ConnectionLost, HpcserveError, Overloaded, Unavailable
from hpcserve.keys import Limits
from hpcserve.named_head import other_head
from hpcserve.observability.samples import Samples
from hpcserve.records import HeadRecord
from hpcserve.state import StateDir
from hpcserve.types import Assignment, RequestId, RouteRequest, Status, Traffic

log = logging.getLogger(__name__)

_CALL_TIMEOUT_S = 10.0
_REGISTER_TIMEOUT_S = 30.0  # a successor lets frontends in once its workers are back
_RETRY_S = 0.25
_REPORT_INTERVAL_S = 1.0

T = TypeVar("T")

_decode_status = msgspec.msgpack.Decoder(Status).decode


class HeadLink:
    """Asks the head. `run` keeps the connection; everything else needs it to run."""

    def __init__(self, state: StateDir, *, patience_s: float = 0.0, most_waiting: int = 1 << 14) -> None:
        """Requests wait `patience_s` for a head that is gone, `most_waiting` of them; then they are refused."""
        self._state = state
        self._patience_s = patience_s
        self._most_waiting = most_waiting
        self.me: FrontendInfo | None = None  # see `introduce`
        self.heard = asyncio.Event()  # set once there is a status
        self.traffic: Callable[[], Traffic] | None = None  # of this frontend, for the head to add up
        self.samples: Callable[[], Samples] | None = None  # of its metrics, where there are other frontends
        self.on_status: Callable[[Status], None] | None = None
        self.on_retire: Callable[[], None] = lambda: None  # the head has other frontends: this one shall end
        self.num_waiting = 0  # requests that wait for a head
        self._channel: Channel | None = None
        self._linked = asyncio.Event()  # set while there is a channel
        self._lost_at = time.monotonic()
        self._held: dict[RequestId, Held] = {}
        self.status: Status | None = None

    @property
    def lost_for_s(self) -> float:
        """Return for how long there has been no head; 0 while there is one."""
        return 0.0 if self._linked.is_set() else time.monotonic() - self._lost_at

    async def run(self) -> None:
        """Connect, register and listen, again and again until cancelled."""
        identity = Identity(self._state.tls_cert, self._state.tls_key)
        while True:
            try:
                head = self._state.read_head()
                if head is None:
                    raise ConnectionLost("the state directory names no head")
                await self._until_succeeded(head, identity)
            except HpcserveError as err:
                log.info("not connected to the head: %s", err.message)
            await asyncio.sleep(_RETRY_S)

    async def say_goodbye(self) -> None:
        """Tell the head, if there is one, what was counted since it was last told: this frontend ends."""
        if self._channel is not None and self.traffic is not None:
            self._channel.send("report", self.traffic())
            await self._channel.flush()

    async def introduce(self, me: FrontendInfo) -> None:
        """Tell the head, now or when there is one, that this frontend takes requests, and where."""
        self.me = me
        if self._channel is not None:
            with suppress(ConnectionLost):  # then the next connection begins with it
                self._take(await self._channel.call("register", me, Status, timeout_s=_REGISTER_TIMEOUT_S))

    async def assign(self, route: RouteRequest, *, timeout_s: float) -> Assignment:
        """Ask where a request runs, and wait until it may start. Raises `Unavailable`, `Overloaded` or `RateLimited`.

        The assignment is held until `release`, and so is its place among those that wait: whoever gives up waiting,
        or is cancelled, has to release too. If the head is lost meanwhile, its successor is asked.
        """
        assignment = await self._ask_whoever_comes("assign", route, Assignment, timeout_s)
        self._held[route.request_id] = Held(assignment=assignment, num_tokens=route.num_tokens)
        return assignment

    def prefilled(self, request_id: RequestId) -> None:
        """Report that the prompt of a request was computed."""
        if (held := self._held.get(request_id)) is not None:
            held.is_prefilled = True
        if self._channel is not None:
            self._channel.send("prefilled", request_id)

    def release(self, request_id: RequestId, num_generated: int | None = None) -> None:
        """Report that a request neither runs where it was assigned to, nor waits, any more.

        `num_generated` are the tokens of one that came to its own end: the head learns how long answers are.
        """
        self._held.pop(request_id, None)
        if self._channel is not None and num_generated is not None:
            self._channel.send("finished", (request_id, num_generated))
        elif self._channel is not None:
            self._channel.send("release", request_id)

    async def begin(self, tenant: str, limits: Limits) -> None:
        """Have the head count one request of this frontend until `end`, or until the connection ends.

        Raises `RateLimited` where it may not begin, and `Unavailable` without a head.
        """
        await self._ask_whoever_comes("begin", (tenant, limits), type(None), _CALL_TIMEOUT_S)

    def end(self, tenant: str) -> None:
        """One that has begun has ended."""
        if self._channel is not None:
            self._channel.send("end", tenant)

    def count_tokens(self, tenant: str, num_tokens: int) -> None:
        """Have the head count tokens of a tenant."""
        if self._channel is not None:
            self._channel.send("tokens", (tenant, num_tokens))

    async def others(self) -> Samples:
        """Return what the other frontends have counted, up to a second ago. Raises `Unavailable` without a head."""
        return await self._ask("others", None, Samples, _CALL_TIMEOUT_S)

    async def _ask_whoever_comes(self, op: str, body: object, reply: type[T], timeout_s: float) -> T:
        """Ask; if there is no head, or it goes before it has answered, wait for the next one and ask that."""
        while True:
            channel = await self._wait_for_head()
            try:
                return await channel.call(op, body, reply, timeout_s=timeout_s)
            except ConnectionLost as err:
                if not channel.is_closed:
                    raise Unavailable(f"the scheduler does not answer at the moment: {err.message}") from err

    async def _wait_for_head(self) -> Channel:
        deadline = time.monotonic() + self._patience_s
        if self._channel is None and self.num_waiting >= self._most_waiting:
            raise Overloaded(f"{self.num_waiting} requests wait for the scheduler; try again later")
        self.num_waiting += 1
        try:
            while (channel := self._channel) is None or channel.is_closed:
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + deadline - time.monotonic()):
                    await self._linked.wait()
                    await asyncio.sleep(0)  # one that has just closed is still there
        except TimeoutError:
            waited = f" within {self._patience_s:g} s (frontend.head_timeout_s)" if self._patience_s else ""
            raise Unavailable(f"the scheduler is not reachable{waited}; try again soon") from None
        finally:
            self.num_waiting -= 1
        return channel

    async def _ask(self, op: str, body: object, reply: type[T], timeout_s: float) -> T:
        if self._channel is None or self._channel.is_closed:
            raise Unavailable("the scheduler is not reachable at the moment; try again soon")
        try:
            return await self._channel.call(op, body, reply, timeout_s=timeout_s)
        except ConnectionLost as err:
            raise Unavailable(f"the scheduler is not reachable at the moment: {err.message}") from err

    async def on_call(self, op: str, body: msgspec.Raw) -> object:
        """Frontends answer no calls."""
        raise BadRequest(f"frontends answer no call {op!r}")

    def on_message(self, op: str, body: msgspec.Raw) -> None:
        """Take a new status, or the wish that this frontend ends."""
        if op == "status":
            self._take(_decode_status(body))
        elif op == "retire":
            self.on_retire()

    def on_close(self) -> None:
        """The head is gone; `run` connects again."""
        self._channel = None
        if self._linked.is_set():
            self._linked.clear()
            self._lost_at = time.monotonic()

    async def _until_succeeded(self, head: HeadRecord, identity: Identity) -> None:
        """Talk to this head until the connection ends, or until the state directory names another one."""
        talking = asyncio.create_task(self._talk(head, identity))
        succeeded = asyncio.create_task(other_head(self._state, head))
        try:
            await asyncio.wait((talking, succeeded), return_when=asyncio.FIRST_COMPLETED)
            if talking.done():
                talking.result()
        finally:
            for task in (talking, succeeded):
                task.cancel()
            await asyncio.gather(talking, succeeded, return_exceptions=True)

    async def _talk(self, head: HeadRecord, identity: Identity) -> None:
        channel = await connect(head.address, identity, timeout_s=_CALL_TIMEOUT_S)
        running = asyncio.create_task(channel.run(self))
        try:
            op = "subscribe" if self.me is None else "register"
            self._take(await channel.call(op, self.me, Status, timeout_s=_REGISTER_TIMEOUT_S))
            self._open(channel)
            if op == "subscribe" and self.me is not None:  # introduced meanwhile
                await self.introduce(self.me)
            if self.traffic is not None:
                reporting = asyncio.create_task(_report(channel, self.traffic, self.samples))
                running.add_done_callback(lambda _: reporting.cancel())
            await running
        finally:
            channel.close()
            await asyncio.wait((running,))

    def _open(self, channel: Channel) -> None:
        """From here on the head is asked. What it does not know, as its predecessor assigned it, it is told first."""
        if self._held:
            channel.send("held", list(self._held.values()))
        self._channel = channel
        self._linked.set()

    def _take(self, status: Status) -> None:
        self.status = status
        self.heard.set()
        if self.on_status is not None:
            self.on_status(status)


async def _report(channel: Channel, traffic: Callable[[], Traffic], samples: Callable[[], Samples] | None) -> None:
    """Tell the head at once, for it counts what is new from there on, and then whenever there was some."""
    told: Traffic | None = None
    sampled: Samples | None = None
    while True:
        now = traffic()
        if now != told:
            channel.send("report", now)
            told = now
        if samples is not None and (newest := samples()) != sampled:
            channel.send("samples", newest)
            sampled = newest
        await asyncio.sleep(_REPORT_INTERVAL_S)
