"""The ranks that reported to the head: who they are, who is free, and how the GPUs of a node are shared among them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec

from hpcserve.cluster.launcher import Devices
from hpcserve.cluster.rank_protocol import Ended, Hello
from hpcserve.comm.channel import Channel
from hpcserve.errors import BadRequest, ClusterError

log = logging.getLogger(__name__)

_LOST_S = 20.0  # a rank whose connection broke has so long to report again


class RankPeer:
    """One connection of a rank."""

    def __init__(self, ranks: Ranks, channel: Channel) -> None:
        self._ranks = ranks
        self.channel = channel
        self._hello: Hello | None = None

    @property
    def hello(self) -> Hello:
        """What it said of itself."""
        assert self._hello is not None
        return self._hello

    async def on_call(self, op: str, body: msgspec.Raw) -> None:
        """Take the rank in."""
        if op != "join":
            raise BadRequest(f"no call {op!r} for ranks")
        self._hello = msgspec.msgpack.decode(body, type=Hello)
        self._ranks.join(self)

    def on_message(self, op: str, body: msgspec.Raw) -> None:
        """Hear how an agent ended."""
        if op == "ended" and self._hello is not None:
            ended = msgspec.msgpack.decode(body, type=Ended)
            self._ranks.on_ended(self.hello.rank, ended.job_id, ended.reason)
        else:
            log.warning("ignored a message %r from %s", op, self.channel.peer_address)

    def on_close(self) -> None:
        """The connection is over."""
        if self._hello is not None:
            self._ranks.leave(self)


class Ranks:
    """All ranks but 0. Calls back when one has reported, says that an agent ended, or stayed away for too long."""

    def __init__(
        self,
        on_joined: Callable[[Hello], None],
        on_ended: Callable[[int, str, str], None],
        on_lost: Callable[[Hello], None],
    ) -> None:
        self._on_joined = on_joined
        self.on_ended = on_ended
        self._on_lost = on_lost
        self._peers: dict[int, RankPeer] = {}
        self._busy: set[int] = set()
        self._is_dismissing = False
        self._left = asyncio.Event()

    def peer(self, channel: Channel) -> RankPeer:
        """Return what hears a new connection."""
        return RankPeer(self, channel)

    def join(self, peer: RankPeer) -> None:
        """Take a rank in; its earlier connection, if there is one, is over."""
        hello = peer.hello
        before = self._peers.get(hello.rank)
        self._peers[hello.rank] = peer
        if before is not None:
            before.channel.close()
        (self._busy.add if hello.running else self._busy.discard)(hello.rank)
        log.info("rank %d reports from %s", hello.rank, hello.node)
        self._on_joined(hello)
        if self._is_dismissing:
            peer.channel.send("leave", None)

    def leave(self, peer: RankPeer) -> None:
        """Note that a connection is over; its rank has some seconds to come back."""
        self._left.set()
        if self._peers.get(peer.hello.rank) is peer and not self._is_dismissing:
            log.warning("rank %d on %s is not heard any more", peer.hello.rank, peer.hello.node)
            asyncio.get_running_loop().call_later(_LOST_S, self._give_up, peer)

    def missing(self, num_ranks: int) -> list[int]:
        """Return the ranks that have not reported."""
        return [rank for rank in range(1, num_ranks) if rank not in self._peers]

    def next_free(self) -> RankPeer | None:
        """Return the first rank that can take an agent, which counts as busy from now on."""
        for rank, peer in sorted(self._peers.items()):
            if rank not in self._busy and not peer.channel.is_closed:
                self._busy.add(rank)
                return peer
        return None

    def free(self, rank: int) -> None:
        """Note that a rank holds no agent."""
        self._busy.discard(rank)

    def send(self, rank: int, op: str, body: object) -> None:
        """Tell a rank; lost without a word if it is not heard."""
        if rank in self._peers:
            self._peers[rank].channel.send(op, body)

    def devices_of(self, peer: RankPeer) -> dict[str, str]:
        """Return the variable with a rank's share of the node's GPUs. Raises `ClusterError` if there is none."""
        hello, beside = peer.hello, self._beside(peer)
        devices = Devices(hello.device_variable, hello.devices, hello.has_own_devices)
        try:
            share = devices.share(beside.index(hello.rank), len(beside))
        except ValueError as err:
            raise ClusterError(f"{err}: start as many ranks on a node as it has GPUs, or fewer") from err
        return {} if share is None else {hello.device_variable: share}

    def num_beside(self, peer: RankPeer) -> int:
        """Return among how many ranks the cores of this one's node are shared, itself included."""
        return len(self._beside(peer))

    def _beside(self, peer: RankPeer) -> list[int]:
        return sorted(each.hello.rank for each in self._peers.values() if _node(each.hello) == _node(peer.hello))

    async def dismiss(self, timeout_s: float) -> None:
        """Have all ranks leave and wait until they have."""
        self._is_dismissing = True
        for peer in self._peers.values():
            peer.channel.send("leave", None)
        try:
            async with asyncio.timeout(timeout_s):
                while not all(peer.channel.is_closed for peer in self._peers.values()):
                    self._left.clear()
                    await self._left.wait()
        except TimeoutError:
            staying = [str(rank) for rank, peer in sorted(self._peers.items()) if not peer.channel.is_closed]
            log.warning("rank %s did not leave within %g s", ", ".join(staying), timeout_s)
        self._peers.clear()

    def _give_up(self, peer: RankPeer) -> None:
        rank = peer.hello.rank
        if self._peers.get(rank) is peer and peer.channel.is_closed:
            del self._peers[rank]
            self._busy.discard(rank)
            self._on_lost(peer.hello)


def _node(hello: Hello) -> tuple[str, str]:
    return hello.node, hello.host
