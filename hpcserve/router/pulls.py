"""Which worker warm prefixes are pulled from. Whether a pull is worth it is for the timing to say."""

from __future__ import annotations

from collections.abc import Iterable

from hpcserve.router.load import LoadBook
from hpcserve.router.prompt import Prompt
from hpcserve.types import WorkerId, WorkerInfo


def find_source(holders: Iterable[WorkerInfo], prompt: Prompt, book: LoadBook) -> WorkerId | None:
    """Return who holds most of the prompt and can hand it over; of equals, who has least to compute before that."""
    able = [info.worker for info in holders if can_move_kv(info) and prompt.overlaps.get(info.worker)]
    return min(able, key=lambda w: (-prompt.overlaps[w], book.of(w).queued_tokens, w), default=None)


def can_move_kv(info: WorkerInfo) -> bool:
    """Whether a worker's engine can hand KV to others, and take it from them."""
    return info.engine is not None and info.engine.kv_transport is not None
