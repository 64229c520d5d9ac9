"""When the head is told what the prefix cache stored and removed: at once after a quiet moment, else every 0.1 s.

A decoding engine fills blocks at nearly every step, and each message costs agent and head a fifth of a millisecond:
64 engines of a hundred steps a second would keep the head busy with nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from hpcserve.agent.kv_log import KvLog
from hpcserve.types import BlocksRemoved, BlocksStored, KvEvent, KvEventBatch

_INTERVAL_S = 0.1


class KvOutbox:
    """Collects events and sends them as numbered batches. Used on one event loop."""

    def __init__(self, log: KvLog, send: Callable[[KvEventBatch], None], is_idle: Callable[[], bool]) -> None:
        """`is_idle` says whether the engine runs nothing: then there is nothing to wait for."""
        self._log = log
        self._send = send
        self._is_idle = is_idle
        self._events: list[KvEvent] = []
        self._timer: asyncio.TimerHandle | None = None

    def put(self, events: list[KvEvent]) -> None:
        """Take what one step did."""
        for event in events:
            self._add(event)
        if self._timer is None:
            self._flush()
            self._timer = asyncio.get_running_loop().call_later(_INTERVAL_S, self._on_timer)
        elif self._is_idle():
            self._flush()

    def close(self) -> None:
        """Send nothing more."""
        if self._timer is not None:
            self._timer.cancel()
        self._events.clear()

    def _add(self, event: KvEvent) -> None:
        last = self._events[-1] if self._events else None
        if isinstance(event, BlocksStored) and isinstance(last, BlocksStored):
            self._events[-1] = BlocksStored(last.hashes + event.hashes)
        elif isinstance(event, BlocksRemoved) and isinstance(last, BlocksRemoved):
            self._events[-1] = BlocksRemoved(last.hashes + event.hashes)
        else:
            self._events.append(event)

    def _on_timer(self) -> None:
        self._timer = None
        if self._events:
            self._flush()
            self._timer = asyncio.get_running_loop().call_later(_INTERVAL_S, self._on_timer)

    def _flush(self) -> None:
        events, self._events = self._events, []
        if events:
            self._send(self._log.append(events))
