"""One request's prompt, measured against the caches of the workers."""

from __future__ import annotations

from dataclasses import dataclass

from hpcserve.types import WorkerId


@dataclass(frozen=True, slots=True)
class Prompt:
    """What placing the prompt on a worker would cost there, in tokens to compute and in blocks to hold."""

    num_tokens: int
    block_size: int
    overlaps: dict[WorkerId, int]  # leading blocks held, by worker
    source: WorkerId | None = None  # whom what it holds more than others may be pulled from

    def cached_tokens(self, worker: WorkerId) -> int:
        """Tokens that `worker` need not compute. The last one always is computed: its logits are needed."""
        return min(self.overlaps.get(worker, 0) * self.block_size, max(self.num_tokens - 1, 0))

    def uncached_tokens(self, worker: WorkerId) -> int:
        """Tokens that `worker` would have to compute."""
        return self.num_tokens - self.cached_tokens(worker)

    def pullable_tokens(self, worker: WorkerId) -> int:
        """Tokens that `worker` lacks and the source holds."""
        return max(0, self.cached_tokens(self.source) - self.cached_tokens(worker)) if self.source else 0

    def new_blocks(self, worker: WorkerId) -> int:
        """Blocks that the prompt needs beyond those that `worker` holds."""
        return -(-self.num_tokens // self.block_size) - self.overlaps.get(worker, 0)
