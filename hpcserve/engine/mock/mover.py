"""Real bytes for the mock's handles, over a real KV transport: what a block holds follows from its name.

So whoever pulled a block can tell whether it is the one that was promised, and tests at scale exercise the transport.
The mock keeps no KV otherwise: a handle's blocks are written down for it, at most `MOST_BLOCKS` of them, and stay until
they are read or their room is needed for newer ones.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from base64 import b64decode, b64encode
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcserve.kv.transport import Copy, KVTransport, Region
from hpcserve.types import BlockHash, KvHandle, RequestId

log = logging.getLogger(__name__)

BLOCK_BYTES = 4096
MOST_BLOCKS = 256
_NUM_SLOTS = 4096
_POLL_S = 0.001
_IDLE_POLL_S = 0.02
_OFFERED, _LANDING = 0, 1


class Mover:
    """One mock engine's end. All is called on its event loop; `run` is a task of the engine's."""

    def __init__(self, transport: KVTransport) -> None:
        """Register memory. Blocks for as long as that takes. Raises `KVError`."""
        self._transport = transport
        words = BLOCK_BYTES // 8
        self._memory = [np.zeros((_NUM_SLOTS, words), np.uint64) for _ in (_OFFERED, _LANDING)]
        self._steps = np.arange(words, dtype=np.uint64)
        transport.register([Region(each.ctypes.data, each.nbytes) for each in self._memory])
        self._free = [list(range(_NUM_SLOTS)) for _ in (_OFFERED, _LANDING)]
        self._offers: OrderedDict[bytes, list[int]] = OrderedDict()  # slots, oldest first
        self._pulls: dict[int, tuple[asyncio.Future[str | None], list[int]]] = {}
        self._fetching: dict[RequestId, asyncio.Task[bool]] = {}
        self._room = asyncio.Condition()

    @property
    def kind(self) -> str:
        """What a handle says that it is for."""
        return self._transport.kind

    def offer(self, names: Sequence[BlockHash]) -> dict[str, Any]:
        """Write the blocks of a handle down, and return what its reader needs."""
        names = names[:MOST_BLOCKS]
        while len(self._free[_OFFERED]) < len(names):
            self._withdraw(next(iter(self._offers)))
        slots = [self._free[_OFFERED].pop() for _ in names]
        for slot, name in zip(slots, names, strict=True):
            self._memory[_OFFERED][slot] = self._content(name)
        key = uuid.uuid4().bytes
        self._offers[key] = slots
        return {"end": b64encode(self._transport.describe()).decode(), "key": key.hex(), "slots": slots}

    async def fetch(self, request_id: RequestId, handle: KvHandle) -> bool | None:
        """Pull the blocks of a handle; whether all came and are the ones that it names, or None after an `abort`."""
        fetching = self._fetching[request_id] = asyncio.create_task(self._fetch(handle))
        try:
            await asyncio.wait([fetching])
        finally:
            fetching.cancel()
            del self._fetching[request_id]
        return None if fetching.cancelled() else fetching.result()

    def abort(self, request_id: RequestId) -> None:
        """Want the blocks of a request no more. Ignored where none are being fetched."""
        if (fetching := self._fetching.get(request_id)) is not None:
            fetching.cancel()

    def abort_all(self) -> None:
        """Want no blocks any more."""
        for fetching in self._fetching.values():
            fetching.cancel()

    async def _fetch(self, handle: KvHandle) -> bool:
        try:
            slots, names = list(handle.params["slots"]), handle.params["hashes"]
            peer, key = b64decode(handle.params["end"]), bytes.fromhex(handle.params["key"])
        except (KeyError, TypeError, ValueError):
            log.warning("a handle from %s says nothing of where its blocks are", handle.source)
            return False
        async with self._room:
            await self._room.wait_for(lambda: len(self._free[_LANDING]) >= len(slots))
            landing = [self._free[_LANDING].pop() for _ in slots]
        copies = [
            Copy(_OFFERED, theirs * BLOCK_BYTES, _LANDING, ours * BLOCK_BYTES, BLOCK_BYTES)
            for theirs, ours in zip(slots, landing, strict=True)
        ]
        pull = self._transport.pull(peer, copies, note=key)
        arrived: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._pulls[pull] = (arrived, landing)
        try:
            error = await arrived
        except asyncio.CancelledError:
            self._transport.cancel(pull)  # its room is free when the transport says that it is over
            raise
        if error is None and not self._is_right(landing, names):
            error = "what came is not what the handle names"
        await self._give_back(landing)
        if error is not None:
            log.warning("KV from %s could not be pulled: %s", handle.source, error)
        return error is None

    async def run(self) -> None:
        """Look after pulls and offers, until cancelled."""
        while True:
            finished, notes = self._transport.poll()
            for key in notes:
                self._withdraw(key)
            for each in finished:
                arrived, landing = self._pulls.pop(each.pull)
                if arrived.cancelled():
                    await self._give_back(landing)
                else:
                    arrived.set_result(each.error)
            await asyncio.sleep(_POLL_S if self._pulls else _IDLE_POLL_S)

    def close(self) -> None:
        """Let go of the memory; whoever still waits for a pull hears that it failed."""
        self._transport.close()
        for arrived, _ in self._pulls.values():
            if not arrived.done():
                arrived.set_result("the engine stopped")

    def _content(self, name: BlockHash) -> npt.NDArray[np.uint64]:
        return self._steps + np.uint64(name & 0xFFFF_FFFF_FFFF_FFFF)

    def _is_right(self, landing: list[int], names: Sequence[BlockHash]) -> bool:
        came = self._memory[_LANDING]
        return all(np.array_equal(came[slot], self._content(name)) for slot, name in zip(landing, names, strict=False))

    async def _give_back(self, landing: list[int]) -> None:
        async with self._room:
            self._free[_LANDING].extend(landing)
            self._room.notify_all()

    def _withdraw(self, key: bytes) -> None:
        for slot in self._offers.pop(key, []):
            self._memory[_OFFERED][slot] = 0
            self._free[_OFFERED].append(slot)
