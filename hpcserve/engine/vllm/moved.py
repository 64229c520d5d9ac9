"""Has vLLM forget first what another worker took over. It reorders vLLM's queue of free blocks, and does nothing else.

vLLM 0.32 gives out the blocks of one queue from its front: blank ones, then cached ones, the least recently used first.
It has no priorities among them. It hands the queue to a connector (`bind_gpu_block_pool`), as part of the block pool.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from itertools import islice, takewhile
from typing import Any

logger = logging.getLogger(__name__)

_MAX_BLANK = 256
"""With so many blank blocks in front nothing will be forgotten soon, and no time is spent on looking past them."""


class MovedBlocks:
    """The blocks of requests that moved away, from their end until they are in front of the queue."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool  # vllm.v1.core.block_pool.BlockPool
        self._leased: dict[str, dict[int, Any]] = {}  # by request: the other worker still reads them
        self._free: dict[int, Any] = {}  # contents by block, in the order of the prompt

    def ended(self, request_id: str, block_ids: Iterable[list[int]], *, is_leased: bool) -> None:
        """Note the blocks of a request that ended, by cache group. Leased ones become free later."""
        blocks = {index: self._pool.blocks[index].block_hash for group in block_ids for index in group}
        if is_leased:
            self._leased[request_id] = blocks
        else:
            self._free |= blocks

    def sent(self, request_ids: Iterable[str]) -> None:
        """Note that the leases of these requests are over. Unknown ones are ignored."""
        for request_id in request_ids:
            self._free |= self._leased.pop(request_id, {})

    def put_first(self) -> None:
        """Put those that are free, and hold what they held, behind the blank blocks; the end of a prompt first."""
        noted, self._free = self._free, {}
        blocks = [(self._pool.blocks[index], content) for index, content in reversed(noted.items())]
        moved = [block for block, content in blocks if block.ref_cnt == 0 and content and block.block_hash == content]
        queue = self._pool.free_block_queue
        first = islice(queue.iter_blocks_after(None), _MAX_BLANK) if moved else ()
        blank = list(takewhile(lambda block: block.block_hash is None, first))
        if not moved or len(blank) == _MAX_BLANK:
            return
        for block in (*blank, *moved):
            queue.remove(block)
        queue.prepend_n([*blank, *moved])


def watch_moves(pool: Any) -> MovedBlocks | None:
    """Return what keeps track of moves in vLLM's block pool; None, with a warning, if it is not the pool we know."""
    queue = getattr(pool, "free_block_queue", None)
    if all(hasattr(queue, name) for name in ("iter_blocks_after", "remove", "prepend_n")):
        return MovedBlocks(pool)
    logger.warning("this vLLM's block pool is not the one we know; prefixes that move away are kept like others")
    return None
