"""What an engine's prefix cache holds, as it changes."""

from __future__ import annotations

import msgspec

from hpcserve.types.ids import BlockHash, WorkerId


class BlocksStored(msgspec.Struct, frozen=True, tag="s", array_like=True):
    """These blocks can now be reused."""

    hashes: list[BlockHash]


class BlocksRemoved(msgspec.Struct, frozen=True, tag="r", array_like=True):
    """These blocks are gone."""

    hashes: list[BlockHash]


class BlocksCleared(msgspec.Struct, frozen=True, tag="c", array_like=True):
    """The whole cache is gone."""


KvEvent = BlocksStored | BlocksRemoved | BlocksCleared


class KvEventBatch(msgspec.Struct, frozen=True, kw_only=True):
    """Events of one worker in order. `seq` grows by one a batch; a gap means: ask for a snapshot.

    A snapshot is a batch that begins with `BlocksCleared`, stands for all before it, and carries the `seq` of the
    last batch that it includes.
    """

    worker: WorkerId
    seq: int
    events: list[KvEvent]
    is_snapshot: bool = False
