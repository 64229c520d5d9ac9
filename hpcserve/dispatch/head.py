"""A frontend's connection to the head: assignments, and the newest status. Comes back by itself after a loss."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import msgspec

from hpcserve.comm.channel import Channel, connect
from hpcserve.comm.protocol import FrontendInfo
from hpcserve.comm.tls import Identity
from hpcserve.errors import BadRequest, ConnectionLost, HpcserveError, Unavailable
from hpcserve.keys import Limits
from hpcserve.observability.samples import Samples
from hpcserve.state import StateDir
from hpcserve.types import Assignment, RequestId, RouteRequest, Status, Traffic

log = logging.getLogger(__name__)

_CALL_TIMEOUT_S = 10.0
_RETRY_S = 0.5
_REPORT_INTERVAL_S = 1.0

T = TypeVar("T")

_decode_status = msgspec.msgpack.Decoder(Status).decode


class HeadLink:
    """Asks the head. `run` keeps the connection; everything else needs it to run."""

    def __init__(self, state: StateDir) -> None:
        self._state = state
        self.me: FrontendInfo | None = None  # see `introduce`
        self.heard = asyncio.Event()  # set once there is a status
        self.traffic: Callable[[], Traffic] | None = None  # of this frontend, for the head to add up
        self.samples: Callable[[], Samples] | None = None  # of its metrics, where there are other frontends
        self.on_status: Callable[[Status], None] | None = None
        self._channel: Channel | None = None
        self.status: Status | None = None

    async def run(self) -> None:
        """Connect, register and listen, again and again until cancelled."""
        identity = Identity(self._state.tls_cert, self._state.tls_key)
        while True:
            try:
                head = self._state.read_head()
                if head is None:
                    raise ConnectionLost("the state directory names no head")
                channel = await connect(head.address, identity, timeout_s=_CALL_TIMEOUT_S)
                await self._listen(channel)
            except HpcserveError as err:
                log.info("not connected to the head: %s", err.message)
            await asyncio.sleep(_RETRY_S)

    async def introduce(self, me: FrontendInfo) -> None:
        """Tell the head, now or when there is one, that this frontend takes requests, and where."""
        self.me = me
        if self._channel is not None:
            with suppress(ConnectionLost):  # then the next connection begins with it
                self._take(await self._channel.call("register", me, Status, timeout_s=_CALL_TIMEOUT_S))

    async def assign(self, route: RouteRequest, *, timeout_s: float) -> Assignment:
        """Ask where a request runs, and wait until it may start. Raises `Unavailable`, `Overloaded` or `RateLimited`.

        The assignment is held until `release`, and so is its place among those that wait: whoever gives up waiting,
        or is cancelled, has to release too.
        """
        return await self._ask("assign", route, Assignment, timeout_s)

    def prefilled(self, request_id: RequestId) -> None:
        """Report that the prompt of a request was computed."""
        if self._channel is not None:
            self._channel.send("prefilled", request_id)

    def release(self, request_id: RequestId) -> None:
        """Report that a request neither runs where it was assigned to, nor waits, any more."""
        if self._channel is not None:
            self._channel.send("release", request_id)

    async def begin(self, tenant: str, limits: Limits) -> None:
        """Have the head count one request of this frontend until `end`, or until the connection ends.

        Raises `RateLimited` where it may not begin, and `Unavailable` without a head.
        """
        await self._ask("begin", (tenant, limits), type(None))

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
        return await self._ask("others", None, Samples)

    async def _ask(self, op: str, body: object, reply: type[T], timeout_s: float = _CALL_TIMEOUT_S) -> T:
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
        """Take a new status."""
        if op == "status":
            self._take(_decode_status(body))

    def on_close(self) -> None:
        """The head is gone; `run` connects again."""
        self._channel = None

    async def _listen(self, channel: Channel) -> None:
        running = asyncio.create_task(channel.run(self))
        try:
            op = "subscribe" if self.me is None else "register"
            self._take(await channel.call(op, self.me, Status, timeout_s=_CALL_TIMEOUT_S))
            self._channel = channel
            if op == "subscribe" and self.me is not None:  # introduced meanwhile
                await self.introduce(self.me)
            if self.traffic is not None:
                reporting = asyncio.create_task(_report(channel, self.traffic, self.samples))
                running.add_done_callback(lambda _: reporting.cancel())
            await running
        finally:
            channel.close()
            await asyncio.wait((running,))

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
