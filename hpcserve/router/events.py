"""Keeps a `PrefixIndex` in step with the sequence-numbered events of many workers, and notices what went missing.

What is numbered no higher than what was read already changes nothing. It was repeated or overtaken, or the worker
counts anew because it was started again: nobody can tell. So it asks for a snapshot, and that is taken whatever its
number. If an old one is taken by mistake, the next batch shows a gap, and the snapshot after that repairs it.
"""

from __future__ import annotations

from dataclasses import dataclass

from hpcserve.router.index import PrefixIndex
from hpcserve.types import BlocksCleared, BlocksRemoved, BlocksStored, KvEvent, KvEventBatch, WorkerId

_FIRST_SEQS = (0, 1)  # a worker may count from either


@dataclass
class _Feed:
    """How far one worker's events were read."""

    last_seq: int | None = None  # None: nothing was read yet
    has_gap: bool = False
    is_old: bool = False  # something came that was numbered too low


class EventLog:
    """One feed a worker. It asks nobody for anything: `apply` tells the caller when a snapshot is needed."""

    def __init__(self, index: PrefixIndex) -> None:
        self._index = index
        self._feeds: dict[WorkerId, _Feed] = {}

    def open(self, worker: WorkerId) -> None:
        """Accept events of `worker` from now on."""
        self._feeds.setdefault(worker, _Feed())

    def close(self, worker: WorkerId) -> None:
        """Forget `worker` and its blocks."""
        self._feeds.pop(worker, None)
        self._index.drop(worker)

    def apply(self, batch: KvEventBatch) -> bool:
        """Return whether the worker's blocks are exactly known now; False asks for a snapshot (see `Router.apply`)."""
        feed = self._feeds.get(batch.worker)
        if feed is None:
            return False
        if batch.is_snapshot:
            self._apply_snapshot(feed, batch)
        else:
            self._apply_next(feed, batch)
        return not (feed.has_gap or feed.is_old)

    def _apply_snapshot(self, feed: _Feed, batch: KvEventBatch) -> None:
        if feed.last_seq is not None and batch.seq < feed.last_seq and not feed.is_old:
            feed.is_old = True  # later batches are in the index already, and would be lost
            return
        self._index.clear(batch.worker)
        self._write(batch.worker, batch.events)
        feed.last_seq = batch.seq
        feed.has_gap = feed.is_old = False

    def _apply_next(self, feed: _Feed, batch: KvEventBatch) -> None:
        last = feed.last_seq
        if last is not None and batch.seq <= last:
            feed.is_old = True
            return
        if batch.seq not in (_FIRST_SEQS if last is None else (last + 1,)):
            feed.has_gap = True
        self._write(batch.worker, batch.events)
        feed.last_seq = batch.seq

    def _write(self, worker: WorkerId, events: list[KvEvent]) -> None:
        for event in events:
            match event:
                case BlocksStored(hashes=hashes):
                    self._index.store(worker, hashes)
                case BlocksRemoved(hashes=hashes):
                    self._index.remove(worker, hashes)
                case BlocksCleared():
                    self._index.clear(worker)
