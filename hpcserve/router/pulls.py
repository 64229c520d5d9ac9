"""Which worker warm prefixes are pulled from. Whether a pull is worth it is for the timing to say."""

from __future__ import annotations

from collections.abc import Iterable

from hpcserve.router.load import LoadBook
from hpcserve.router.prompt import Prompt
from hpcserve.types import WorkerId, WorkerInfo


def find_source(holders: Iterable[WorkerInfo], prompt: Prompt, book: LoadBook) -> WorkerId | None:
    """Return who holds most of the prompt and can hand it over; of equals, who has least to compute before that.

    What engines without KV events hold is guessed, so nothing is pulled from them: after a wrong guess they would
    compute it.
    """
    able = [info.worker for info in holders if can_move_kv(info) and prompt.overlaps.get(info.worker) and _knows(info)]
    return min(able, key=lambda w: (-prompt.overlaps[w], book.of(w).queued_tokens, w), default=None)


def can_move_kv(info: WorkerInfo) -> bool:
    """Whether a worker's engine can hand KV to others, and take it from them."""
    return info.engine is not None and info.engine.kv_transport is not None


def _knows(info: WorkerInfo) -> bool:
    return info.engine is not None and info.engine.has_kv_events
