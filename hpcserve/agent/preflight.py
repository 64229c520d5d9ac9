"""Before a worker is READY: KV from others that are must arrive intact, and fast enough (`kv.preflight`).

The first worker has nobody to pull from, and passes. Of workers that come up together one goes first, and the others
check against it. One worker of each node is asked, so that what is checked are ways between nodes.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence

from hpcserve.agent.scratch_end import ScratchEnd
from hpcserve.comm.channel import Channel, connect
from hpcserve.comm.protocol import Exhibit
from hpcserve.comm.tls import Identity
from hpcserve.config.models import Config
from hpcserve.errors import BadRequest, ConnectionLost, HpcserveError, KVError
from hpcserve.kv.interface import interface_name
from hpcserve.kv.transport import TransportKind
from hpcserve.types import WorkerInfo, WorkerState

log = logging.getLogger(__name__)

_MAX_PEERS = 4
_ROUNDS = 3
_LOOK_S = 0.25
_TURN_TIMEOUT_S = 60.0  # for the worker that goes first
_CONNECT_TIMEOUT_S = 10.0
_SHOW_TIMEOUT_S = 60.0

AskPeers = Callable[[], Awaitable[tuple[WorkerInfo, ...]]]


class Exhibition:
    """The memory that this agent shows to others, for as long as one of them looks at it."""

    def __init__(self, config: Config) -> None:
        self._kind = transport_kind(config)
        self._visitors: set[object] = set()
        self._end: ScratchEnd | None = None
        self._exhibit: asyncio.Task[Exhibit] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    async def show(self, visitor: object) -> Exhibit:
        """Return what the visitor may pull until it leaves. Raises `KVError`."""
        self._visitors.add(visitor)
        if self._exhibit is None:
            self._end = ScratchEnd(self._kind)
            self._exhibit = asyncio.create_task(self._end.open())
        return await asyncio.shield(self._exhibit)

    def leave(self, visitor: object) -> None:
        """Close with the last visitor."""
        self._visitors.discard(visitor)
        if not self._visitors and self._exhibit is not None and self._end is not None:
            closing = asyncio.create_task(_close(self._exhibit, self._end))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
            self._exhibit = self._end = None


async def _close(exhibit: asyncio.Task[Exhibit], end: ScratchEnd) -> None:
    await asyncio.wait([exhibit])
    await end.close()


async def check_peers(own: WorkerInfo, config: Config, identity: Identity, ask_peers: AskPeers) -> None:
    """Return when `own` may be READY. Raises `KVError` naming both nodes and the interface if it may not.

    Peers that cannot be reached are passed over: they may be about to end. If it is all of them, others are asked for;
    in the end it is refused.
    """
    end = ScratchEnd(transport_kind(config))
    try:
        await end.open()
        for _ in range(_ROUNDS):
            peers = await _choose(own, ask_peers)
            if not peers:
                log.info("preflight: no other worker is READY")
                return
            if await _check(own, peers, end, config, identity):
                return
        names = ", ".join(f"{peer.worker} on {peer.host}" for peer in peers)
        raise KVError(f"preflight: none of the READY workers can be reached from {own.host}: {names}")
    finally:
        await end.close()


def transport_kind(config: Config) -> TransportKind:
    """Return what `kv.transport` stands for."""
    return "mpi" if config.kv.transport == "mpi" else "nixl"


def one_a_node(own: WorkerInfo, workers: Sequence[WorkerInfo], rng: random.Random) -> list[WorkerInfo]:
    """Choose a READY worker of each node, other nodes first, a few at most. Any of a node's: they share the work."""
    ready = [each for each in workers if each.state is WorkerState.READY and each.address and each.worker != own.worker]
    rng.shuffle(ready)
    by_node = {each.host: each for each in ready}
    return sorted(by_node.values(), key=lambda each: each.host == own.host)[:_MAX_PEERS]


def must_wait(own: WorkerInfo, workers: Sequence[WorkerInfo]) -> bool:
    """Whether another worker that comes up now goes first."""
    return any(each.state is WorkerState.WARMING and each.worker < own.worker for each in workers)


async def _choose(own: WorkerInfo, ask_peers: AskPeers) -> list[WorkerInfo]:
    deadline = asyncio.get_running_loop().time() + _TURN_TIMEOUT_S
    while True:
        try:
            workers = await ask_peers()
        except ConnectionLost as err:  # the head is away; without it nobody is READY
            log.info("preflight: %s", err.message)
            workers = ()
            deadline += _LOOK_S
        else:
            peers = one_a_node(own, workers, random.Random())  # noqa: S311 - spreads load, no secret
            if peers or not must_wait(own, workers) or asyncio.get_running_loop().time() > deadline:
                return peers
        await asyncio.sleep(_LOOK_S)


async def _check(
    own: WorkerInfo, peers: Sequence[WorkerInfo], end: ScratchEnd, config: Config, identity: Identity
) -> int:
    """Return from how many peers KV came well. Raises `KVError` for the first from which it does not."""
    num_good = 0
    for peer in peers:
        try:
            await _check_one(own, peer, end, config, identity)
        except ConnectionLost as err:
            log.warning("preflight: %s on %s is passed over: %s", peer.worker, peer.host, err.message)
        else:
            num_good += 1
    return num_good


async def _check_one(own: WorkerInfo, peer: WorkerInfo, end: ScratchEnd, config: Config, identity: Identity) -> None:
    assert peer.address is not None
    channel = await connect(peer.address, identity, timeout_s=_CONNECT_TIMEOUT_S)
    running = asyncio.create_task(channel.run(_Silent()))
    try:
        exhibit = await _ask(channel)
        pulled = await end.pull(exhibit)
    finally:
        channel.close()
        await running
    interface = interface_name(transport_kind(config), is_same_node=peer.host == own.host)
    way = f"KV from {peer.worker} on {peer.host} to {own.worker} on {own.host} over {exhibit.path} ({interface})"
    floor = config.kv.preflight_min_gb_per_s
    if pulled.error is not None:
        raise KVError(f"preflight: {way}: {pulled.error}")
    if pulled.gb_per_s < floor:
        raise KVError(f"preflight: {way}: {pulled.gb_per_s:.3g} GB/s, and kv.preflight_min_gb_per_s is {floor:g}")
    log.info("preflight: %s: %.3g GB/s", way, pulled.gb_per_s)


async def _ask(channel: Channel) -> Exhibit:
    try:
        return await channel.call("preflight", None, Exhibit, timeout_s=_SHOW_TIMEOUT_S)
    except HpcserveError as err:  # what is wrong over there is no fault of ours
        raise ConnectionLost(f"it shows no memory: {err.message}") from err


class _Silent:
    """The asking end of a connection: it answers nothing."""

    async def on_call(self, op: str, body: object) -> object:
        raise BadRequest(f"a worker that is coming up answers no call {op!r}")

    def on_message(self, op: str, body: object) -> None:
        pass

    def on_close(self) -> None:
        pass
