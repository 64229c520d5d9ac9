"""What an engine's prefix cache holds, as the head is told of it: numbered batches, and a snapshot on request."""

from __future__ import annotations

from hpcserve.types import BlockHash, BlocksCleared, BlocksRemoved, BlocksStored, KvEvent, KvEventBatch, WorkerId


class KvLog:
    """Numbers the events of one worker and remembers what they add up to. Owned by the node agent."""

    def __init__(self, worker: WorkerId) -> None:
        self._worker = worker
        self._seq = 0
        self._held: dict[BlockHash, None] = {}  # insertion-ordered: prefixes come before what extends them

    def append(self, events: list[KvEvent]) -> KvEventBatch:
        """Apply events and return them as the next batch."""
        for event in events:
            self._apply(event)
        self._seq += 1
        return KvEventBatch(worker=self._worker, seq=self._seq, events=events)

    def snapshot(self) -> KvEventBatch:
        """Return one batch that stands for all batches so far."""
        events: list[KvEvent] = [BlocksCleared(), BlocksStored(list(self._held))]
        return KvEventBatch(worker=self._worker, seq=self._seq, events=events, is_snapshot=True)

    def _apply(self, event: KvEvent) -> None:
        match event:
            case BlocksStored(hashes):
                self._held.update(dict.fromkeys(hashes))
            case BlocksRemoved(hashes):
                for block in hashes:
                    self._held.pop(block, None)
            case BlocksCleared():
                self._held.clear()
