"""Has another worker pull the hottest prefixes of one that leaves, so that they are not computed again.

It asks as a frontend would: for a handle here, and there for one token after the same prefix. What the other worker has
already it does not pull. Nobody waits for this: it is bounded in time and tokens, and what fails is left behind.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from hpcserve.agent.hot_prefixes import HotPrefix, HotPrefixes
from hpcserve.comm.channel import Channel, connect
from hpcserve.comm.tls import Identity
from hpcserve.engine.protocol import Run
from hpcserve.errors import BadRequest, ConnectionLost, HpcserveError
from hpcserve.types import EngineOutput, EngineRequest, KvHandle, RequestId, Sampling, WorkerId, WorkerInfo

log = logging.getLogger(__name__)

_CONNECT_TIMEOUT_S = 3.0
_MOST_TOKENS = 1 << 17
_TIMEOUT_S = 5.0
_SETTLE_S = 0.5  # workers that are all told to end, as the deployment goes down, have told the head by then
_NUM_AT_ONCE = 2
_AFTER_OTHERS = 1  # priority: requests of clients come first, here and there

_decode_outputs = msgspec.msgpack.Decoder(list[EngineOutput]).decode


async def move_prefixes(
    hot: HotPrefixes,
    run: Run,
    leaving: WorkerInfo,
    find_peers: Callable[[], Awaitable[Sequence[WorkerInfo]]],
    identity: Identity,
    leave_at: float,
) -> int:
    """Return how many prefixes another worker has now, at the latest at `leave_at`, a Unix time. Raises nothing."""
    prefixes = hot.hottest(_MOST_TOKENS)
    if not prefixes:
        return 0
    await asyncio.sleep(_SETTLE_S)
    to = choose_successor(leaving, await find_peers())
    timeout_s = min(_TIMEOUT_S, leave_at - time.time())
    if to is None or to.address is None or timeout_s <= 0:
        return 0
    moves = _Moves(leaving.worker, run)
    try:
        async with asyncio.timeout(timeout_s):
            await moves.run_all(prefixes, to.address, identity)
    except (HpcserveError, TimeoutError) as err:
        log.warning("not all prefixes were handed to %s: %s", to.worker, str(err) or f"{timeout_s:.1f} s are over")
    log.info("%d of %d hot prefixes are on %s now", moves.num_moved, len(prefixes), to.worker)
    return moves.num_moved


def choose_successor(leaving: WorkerInfo, peers: Sequence[WorkerInfo]) -> WorkerInfo | None:
    """Return who prompts like this worker's go to next: of its pool and role the newest, which has the most room."""
    alike = [peer for peer in peers if peer.role is leaving.role and peer.address is not None]
    of_pool = [peer for peer in alike if peer.pool == leaving.pool] or alike
    return of_pool[-1] if of_pool else None


class _Moves:
    """Moves from one engine to one worker."""

    def __init__(self, leaving: WorkerId, run: Run) -> None:
        self._leaving = leaving
        self._run = run
        self.num_moved = 0

    async def run_all(self, prefixes: Sequence[HotPrefix], address: str, identity: Identity) -> None:
        """Move them, the hottest first. Raises `ConnectionLost`."""
        channel = await connect(address, identity, timeout_s=_CONNECT_TIMEOUT_S)
        asked = _Asked()
        running = asyncio.create_task(channel.run(asked))
        slots = asyncio.Semaphore(_NUM_AT_ONCE)

        async def move(number: int, prefix: HotPrefix) -> None:
            async with slots:
                await self._move(number, prefix, channel, asked)

        try:
            await asyncio.gather(*(move(number, prefix) for number, prefix in enumerate(prefixes)))
        finally:
            channel.close()
            await running

    async def _move(self, number: int, prefix: HotPrefix, channel: Channel, asked: _Asked) -> None:
        request = EngineRequest(
            request_id=RequestId(f"{self._leaving}-prefix-{number}"),
            token_ids=list(prefix.token_ids),
            sampling=Sampling(max_tokens=1, temperature=0.0),
            cache_salt=prefix.cache_salt,
            priority=_AFTER_OTHERS,
        )
        handle = await self._handle(request)
        if handle is None:
            return
        reused = len(prefix.token_ids) - 1
        wanted = msgspec.structs.replace(request, kv=handle, reused_tokens=reused)
        last = await asked.wait_for(wanted, channel)
        self.num_moved += last.error is None and last.finish_reason != "abort"

    async def _handle(self, request: EngineRequest) -> KvHandle | None:
        outputs: list[EngineOutput] = []
        await self._run(msgspec.structs.replace(request, prefill_only=True, moves_away=True), outputs.append)
        return outputs[-1].kv if outputs else None


class _Asked:
    """The asking end of a connection."""

    def __init__(self) -> None:
        self._waiting: dict[RequestId, asyncio.Future[EngineOutput]] = {}

    async def wait_for(self, request: EngineRequest, channel: Channel) -> EngineOutput:
        """Send a request and return its last output. Raises `ConnectionLost`."""
        if channel.is_closed:
            raise ConnectionLost("the other worker has closed the connection")
        answer: asyncio.Future[EngineOutput] = asyncio.get_running_loop().create_future()
        self._waiting[request.request_id] = answer
        channel.send("generate", request)
        return await answer

    async def on_call(self, op: str, body: msgspec.Raw) -> object:
        raise BadRequest(f"a worker that leaves answers no call {op!r}")

    def on_message(self, op: str, body: msgspec.Raw) -> None:
        for output in _decode_outputs(body):
            answer = self._waiting.get(output.request_id)
            if answer is not None and not answer.done() and output.finish_reason is not None:
                answer.set_result(output)

    def on_close(self) -> None:
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(ConnectionLost("the other worker has gone"))
