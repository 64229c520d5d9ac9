"""vLLM's KV events, renamed into our block hashes. Keeps no cache contents, only names.

vLLM names blocks by hashes of its own, which are seeded per process or differ by algorithm. Every stored block comes
with its tokens and its parent, so each name is translated once and remembered until the block is removed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import msgspec

from hpcserve.kv.hashing import extend_hash
from hpcserve.types import BlockHash, BlocksCleared, BlocksRemoved, BlocksStored, KvEvent

logger = logging.getLogger(__name__)

_CONNECT_TIMEOUT_S = 10.0
_REPLAY_TIMEOUT_S = 5.0


class KvEventTranslator:
    """Turns events of one vLLM engine into ours. A block held twice is stored once and removed when both are gone."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._names: dict[Any, BlockHash] = {}
        self._num_copies: dict[BlockHash, int] = {}

    def translate(self, events: Sequence[Any]) -> list[KvEvent]:
        """Return what changed. Events of other groups of layers, and of blocks of another size, are left out."""
        translated: list[KvEvent] = []
        for event in events:
            match type(event).__name__:
                case "BlockStored" if not event.group_idx and event.block_size == self._block_size:
                    if stored := self._store(event):
                        translated.append(BlocksStored(stored))
                case "BlockRemoved" if not event.group_idx:
                    if removed := self._remove(event.block_hashes):
                        translated.append(BlocksRemoved(removed))
                case "AllBlocksCleared":
                    translated.append(self.clear())
        return translated

    def clear(self) -> BlocksCleared:
        """Forget everything."""
        self._names.clear()
        self._num_copies.clear()
        return BlocksCleared()

    def _store(self, event: Any) -> list[BlockHash]:
        parent = None
        if event.parent_block_hash is not None:
            parent = self._names.get(event.parent_block_hash)
            if parent is None:
                logger.warning("a stored block has a parent that was never announced; its %d blocks are left out",
                               len(event.block_hashes))  # fmt: skip
                return []
        salt = _find_salt(event)
        new: list[BlockHash] = []
        for index, theirs in enumerate(event.block_hashes):
            start = index * self._block_size
            parent = extend_hash(parent, event.token_ids[start : start + self._block_size], salt)
            self._names[theirs] = parent
            copies = self._num_copies[parent] = self._num_copies.get(parent, 0) + 1
            if copies == 1:
                new.append(parent)
        return new

    def _remove(self, theirs: Sequence[Any]) -> list[BlockHash]:
        gone: list[BlockHash] = []
        for name in theirs:
            ours = self._names.get(name)
            if ours is None:
                continue
            self._num_copies[ours] -= 1
            if not self._num_copies[ours]:
                del self._num_copies[ours], self._names[name]
                gone.append(ours)
        return gone


def _find_salt(event: Any) -> str | None:
    """Return the cache salt of a prompt's first block; vLLM puts it among that block's extra keys, untagged."""
    keys = (event.extra_keys or [None])[0] or ()
    return next((key for key in keys if isinstance(key, str) and key != event.lora_name), None)


class KvEventReader:
    """Reads the events of one engine from its ZeroMQ socket, and asks again for what it missed."""

    def __init__(self, endpoint: str, block_size: int, on_kv_events: Callable[[list[KvEvent]], None]) -> None:
        self._endpoint = endpoint
        self._translator = KvEventTranslator(block_size)
        self._on_kv_events = on_kv_events
        self._decoder: Any = None
        self._context: Any = None
        self._socket: Any = None
        self._next_seq = 0

    async def connect(self) -> None:
        """Subscribe. Raises `TimeoutError` where nobody publishes at the endpoint."""
        zmq: Any = import_module("zmq")
        sockets: Any = import_module("zmq.asyncio")
        from vllm.distributed.kv_events import KVEventBatch

        self._decoder = msgspec.msgpack.Decoder(KVEventBatch)
        self._context = sockets.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.set_hwm(0)
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        monitor = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        try:
            self._socket.connect(self._endpoint)
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                await monitor.recv_multipart()
        finally:
            self._socket.disable_monitor()

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            _topic, seq, payload = await self._socket.recv_multipart()
            number = int.from_bytes(seq, "big")
            if number > self._next_seq:
                await self._replay(number)
            if number >= self._next_seq:
                self._next_seq = number + 1
                self._deliver(self._decoder.decode(payload).events)

    def close(self) -> None:
        """Close the socket."""
        if self._context is not None:
            self._context.destroy(linger=0)
            self._context = None

    def _deliver(self, events: Sequence[Any]) -> None:
        if translated := self._translator.translate(events):
            self._on_kv_events(translated)

    async def _replay(self, until: int) -> None:
        """Deliver the batches before `until` that never arrived; where vLLM has dropped them, start over."""
        zmq: Any = import_module("zmq")
        with self._context.socket(zmq.DEALER) as socket:
            socket.setsockopt(zmq.LINGER, 0)
            socket.connect(f"{self._endpoint}-replay")
            await socket.send_multipart([b"", self._next_seq.to_bytes(8, "big")])
            try:
                async with asyncio.timeout(_REPLAY_TIMEOUT_S):
                    while self._next_seq < until:
                        *_, seq, payload = await socket.recv_multipart()
                        number = int.from_bytes(seq, "big", signed=True)
                        if not payload or number != self._next_seq:
                            break
                        self._next_seq = number + 1
                        self._deliver(self._decoder.decode(payload).events)
            except TimeoutError:
                pass
        if self._next_seq < until:
            logger.warning("vLLM's KV events %d to %d are lost; this worker's prefixes are learned anew",
                           self._next_seq, until - 1)  # fmt: skip
            self._on_kv_events([self._translator.clear()])
