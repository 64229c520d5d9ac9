"""The worker's half of the transport connector: pulls, and keeps blocks that peers pull. It never waits.

A pull is over when its blocks are here and its lease was seen to hold after that; else its blocks are said to have
failed, and vLLM computes them. A lease ends when its reader says so, or when no reader was heard for some time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpcserve.engine.vllm.kv_layout import Layout, find_layout
from hpcserve.engine.vllm.transport_orders import (
    NUM_LEASES,
    End,
    Lease,
    Orders,
    Pull,
    Source,
    encode_note,
    read_note,
)
from hpcserve.kv.transport import Copy, Finished, KVTransport, Region

logger = logging.getLogger(__name__)

_LONGEST_LOOK_S = 1.0  # of a pause between two looks that counts: what froze us kept readers from being heard
_WORD = 8  # bytes


@dataclass
class _Held:
    """A lease that peers can read. `left_s` is None while its blocks are still being computed."""

    lease: Lease
    left_s: float | None = None
    is_done: bool = False


@dataclass
class _Reading:
    """A pull under way: first the blocks, then the lease."""

    pull: Pull
    landing: int | None = None  # where the lease comes to; None: the blocks are still coming
    is_cancelled: bool = False


class TransportWorker:
    """One worker process's. All is called between its engine's steps.

    `lease_s` is how long blocks are kept for a reader of whom nothing is heard: longer than a pull may be stuck.
    """

    def __init__(
        self,
        transport: KVTransport,
        rank: int,
        *,
        lease_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._transport = transport
        self._rank = rank
        self._lease_s = lease_s
        self._clock = clock
        self._looked_at = clock()
        self._table = np.zeros(2 * NUM_LEASES, np.uint64)  # our leases, then room for those of peers
        self._landings = list(range(2 * NUM_LEASES - 1, NUM_LEASES - 1, -1))
        self._held: dict[str, _Held] = {}  # by request
        self._holders: dict[int, str] = {}  # requests by lease
        self._reading: dict[int, _Reading] = {}  # by pull of the transport
        self._failed_blocks: set[int] = set()
        self._layout: Layout | None = None

    def register(self, tensors: Mapping[str, Any], num_blocks: int, block_size: int) -> None:
        """Make the engine's KV readable for peers. Raises `KVError`."""
        self._layout, regions = find_layout(tensors, num_blocks, block_size)
        table = Region(self._table.ctypes.data, self._table.nbytes)
        self._transport.register([table, *regions])
        logger.info("KV over %s: %s", self._transport.kind, self._transport.abilities.path)

    def end(self) -> End:
        """Return what peers need to know."""
        assert self._layout is not None  # `register` comes first
        return End(self._transport.describe(), self._layout)

    def obey(self, orders: Orders) -> None:
        """Start what the scheduler's half ordered."""
        for lease in orders.dropped:
            self._forget(self._holders.get(lease.id))
        for request_id, lease in orders.granted.items():
            self._held[request_id] = _Held(lease)
            self._holders[lease.id] = request_id
            self._table[lease.slot] = lease.id
        for request_id in orders.sent:
            self._held[request_id].left_s = self._lease_s
        for source in orders.kept:
            self._tell("keep", source)
        for source in orders.unwanted:
            self._tell("done", source)
        for pull in orders.pulls:
            self._start(pull)
        for request_id in orders.cancelled:
            self._cancel(request_id)

    def take_finished(self) -> tuple[set[str], set[str]]:
        """Return requests whose blocks no peer needs any more, and requests whose pulls are over."""
        finished, notes = self._transport.poll()
        for body in notes:
            self._hear(body)
        received = {request_id for each in finished if (request_id := self._go_on(each)) is not None}
        return self._end_leases(), received

    def take_failed_blocks(self) -> set[int]:
        """Return blocks whose pulls failed since the last call."""
        failed, self._failed_blocks = self._failed_blocks, set()
        return failed

    def close(self) -> None:
        """Let go of the engine's memory."""
        self._transport.close()

    def _start(self, pull: Pull) -> None:
        assert self._layout is not None
        self._tell("keep", pull.source)
        copies = self._layout.copies_from(pull.source.layout, pull.remote_blocks, pull.local_blocks)
        self._reading[self._transport.pull(pull.source.end(self._rank), copies)] = _Reading(pull)

    def _cancel(self, request_id: str) -> None:
        for number, reading in self._reading.items():
            if reading.pull.request_id == request_id:
                reading.is_cancelled = True
                self._transport.cancel(number)

    def _go_on(self, finished: Finished) -> str | None:
        """Take the next step of a pull; return its request if there is none."""
        reading = self._reading.pop(finished.pull)
        pull, error = reading.pull, finished.error
        if reading.landing is None and (error or reading.is_cancelled or not self._landings):
            self._tell("done", pull.source)
            self._fail(reading, error or "more pulls end at once than there is room for")
            return pull.request_id
        if reading.landing is None:
            self._check_lease(reading)
            return None
        self._landings.append(reading.landing)
        if error or int(self._table[reading.landing]) != pull.source.lease.id:
            self._fail(reading, error or "its source had given the blocks away, the lease was over")
        return pull.request_id

    def _check_lease(self, reading: _Reading) -> None:
        source, landing = reading.pull.source, self._landings.pop()
        reading.landing = landing
        self._table[landing] = 0
        copy = Copy(0, source.lease.slot * _WORD, 0, landing * _WORD, _WORD)
        done = encode_note("done", source.lease)
        self._reading[self._transport.pull(source.end(self._rank), [copy], note=done)] = reading

    def _fail(self, reading: _Reading, why: str) -> None:
        if reading.is_cancelled:
            return
        pull = reading.pull
        logger.warning("request %s: %d blocks could not be pulled: %s", pull.request_id, len(pull.local_blocks), why)
        self._failed_blocks.update(pull.local_blocks)

    def _tell(self, kind: Any, source: Source) -> None:
        self._transport.notify(source.end(self._rank), encode_note(kind, source.lease))

    def _hear(self, body: bytes) -> None:
        try:
            note = read_note(body)
        except ValueError as err:
            logger.warning("%s", err)
            return
        held = self._held.get(self._holders.get(note.lease, ""))
        if held is None:
            return
        if note.kind == "done":
            held.is_done = True
        elif held.left_s is not None:
            held.left_s = self._lease_s

    def _end_leases(self) -> set[str]:
        now = self._clock()
        elapsed_s, self._looked_at = min(now - self._looked_at, _LONGEST_LOOK_S), now
        ended = set()
        for request_id, held in self._held.items():
            if held.left_s is None:
                continue
            held.left_s -= elapsed_s
            if held.left_s <= 0 and not held.is_done:
                logger.warning("request %s: nobody fetched its KV within %g s", request_id, self._lease_s)
            if held.is_done or held.left_s <= 0:
                ended.add(request_id)
        for request_id in ended:
            self._forget(request_id)
        return ended

    def _forget(self, request_id: str | None) -> None:
        """Take a lease back: from here on readers find that their blocks are not what they were."""
        held = self._held.pop(request_id, None) if request_id is not None else None
        if held is None:
            return
        del self._holders[held.lease.id]
        if int(self._table[held.lease.slot]) == held.lease.id:
            self._table[held.lease.slot] = 0
