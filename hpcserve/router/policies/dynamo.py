"""Policy `dynamo`: near the request's prefix, unless the worker that holds it has too much to do. A baseline.

    cost = PREFILL_WEIGHT * prefill_blocks + decode_blocks

`prefill_blocks` are the blocks' worth of prompt tokens to compute on the worker before the request's first token: those
queued there, and those of the request that its prefix cache does not hold. `decode_blocks` are the KV blocks that would
be active there, which every decode step has to read. The lowest cost wins. This is the shape of the cost that NVIDIA
Dynamo documents for its KV router (overlap-weighted prefill blocks plus active decode blocks, weight 1 by default); it
counts blocks, not time, and knows of no pulls.
"""

from __future__ import annotations

from collections.abc import Sequence

from hpcserve.router.policies.base import Candidate, Turns
from hpcserve.types import RouteRequest, WorkerId

PREFILL_WEIGHT = 1.0
"""Above 1 favours cache hits and a short time to first token; below 1 favours evenly filled caches."""


class Dynamo:
    """The lowest cost; of equals the lowest load, then in turn."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._turns = Turns()

    def choose(self, candidates: Sequence[Candidate], request: RouteRequest) -> WorkerId:
        """Return the candidate of the lowest cost."""
        weight = PREFILL_WEIGHT / self._block_size
        return self._turns.lowest(
            candidates, lambda c: (weight * (c.queued_tokens + c.new_tokens) + c.decode_blocks, c.load)
        )

    def forget(self, worker: WorkerId) -> None:
        """Drop its turn."""
        self._turns.forget(worker)
