"""When requests of batches may start on a worker: the rule, for the router and for agents. Pure; it counts nothing.

Batches fill what online requests leave. A worker that online requests need as well takes few of them, and few tokens
in one pass: whoever comes meanwhile waits for the step that runs, and computes in one with those that decode. A worker
that online requests do not need takes them up to a share, so that they find room there at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from hpcserve.types import EngineInfo

QUIET_S = 10.0
"""Without an online request for so long there are none."""
BUSY_SHARE = 0.02
"""Of a worker's sequences that may be those of batches, where online requests need it too."""
BUSY_PASS_TOKENS = 512
"""Prompt tokens of batches that are computed together while there are online requests."""
DEFAULT_SEQS = 256
DEFAULT_PASS_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class Occupied:
    """What a worker has to do already, of all kinds together."""

    num_requests: int
    num_offline: int  # of batches, here or on all workers
    queued_tokens: int  # of prompts that are not computed yet
    kv_share: float  # of the KV cache, 0 to 1


@dataclass(frozen=True)
class BackfillRule:
    """For requests of `priority` and later; what comes before is online."""

    priority: int = 100
    max_share: float = 0.75  # of a worker's sequences, and of its KV cache

    def holds_for(self, priority: int) -> bool:
        """Whether a request of `priority` belongs to a batch."""
        return priority >= self.priority

    def has_room(self, engine: EngineInfo | None, occupied: Occupied, num_tokens: int, *, is_quiet: bool) -> bool:
        """Whether a worker may take a prompt of which `num_tokens` are to be computed. One that is idle takes any.

        `is_quiet`: online requests do not need it now.
        """
        if not occupied.num_requests:
            return True
        most_seqs = (engine.max_num_seqs if engine else None) or DEFAULT_SEQS
        if occupied.num_requests >= self.max_share * most_seqs or occupied.kv_share >= self.max_share:
            return False
        if not is_quiet and occupied.num_offline >= max(1.0, BUSY_SHARE * most_seqs):
            return False
        whole_pass = (engine.max_batched_tokens if engine else None) or DEFAULT_PASS_TOKENS
        most_tokens = whole_pass if is_quiet else min(BUSY_PASS_TOKENS, whole_pass)
        return not occupied.queued_tokens or occupied.queued_tokens + num_tokens <= most_tokens
