"""What happened to each request, and all gaps between tokens. It is written by the replay and read by the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from hpcserve.types import Assignment, BlockHash, RequestId

_GENERATED = 1 << 63  # names of generated blocks: no block of a prompt has one of them
_NS = 1e9


@dataclass(slots=True, eq=False)
class Record:
    """One request's times, in seconds of virtual time, and tokens."""

    request_id: RequestId
    arrived_at: float
    num_prompt: int
    num_output: int
    block_hashes: list[BlockHash]  # emptied when it ends
    priority: int = 0  # lower runs first
    assignment: Assignment | None = None
    first_token_at: float | None = None
    ended_at: float | None = None
    first_cached_tokens: int = 0  # of the prompt, found where it was computed, when it first ran
    cached_tokens: int = 0  # the same, or what was found after a preemption, if that is more
    prefix_pulled_tokens: int = 0  # of the prompt, that whoever computed it fetched from another worker's cache
    pulled_tokens: int = 0  # the same, and what the decode worker fetched from whoever computed it
    is_rejected: bool = False

    @property
    def ttft_s(self) -> float:
        """Time to the first token. Only of a request that has one."""
        assert self.first_token_at is not None
        return self.first_token_at - self.arrived_at

    @property
    def e2e_s(self) -> float:
        """Time to the last token. Only of a request that has ended."""
        assert self.ended_at is not None
        return self.ended_at - self.arrived_at

    @property
    def hit_tokens(self) -> int:
        """Tokens of the prompt that were not computed, because a worker held them."""
        return max(self.cached_tokens, self.first_cached_tokens + self.prefix_pulled_tokens)

    @property
    def mean_itl_s(self) -> float:
        """Mean time between its tokens; 0 if it has one."""
        return (self.e2e_s - self.ttft_s) / (self.num_output - 1) if self.num_output > 1 else 0.0


class Gaps:
    """All times between two tokens of a request, in nanoseconds with their numbers: millions of them, few different."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()

    def add(self, gap_s: float, count: int = 1) -> None:
        """Count `count` gaps of this length."""
        self.counts[round(gap_s * _NS)] += count

    def add_each(self, gaps_s: Iterable[float], count: int) -> None:
        """Count `count` gaps of each of these lengths."""
        counts = self.counts
        for gap_s in gaps_s:
            counts[round(gap_s * _NS)] += count


class CountdownWriter:
    """A `leap.CountingWriter`: it writes a number of tokens that was recorded. It knows no tokens."""

    __slots__ = ("_base", "last_at", "num_left", "record")

    def __init__(self, record: Record, num_left: int, name_base: int) -> None:
        self.record = record
        self.num_left = num_left
        self.last_at: float | None = None  # s; of its latest token
        self._base = _GENERATED | name_base

    def write(self) -> bool:
        """Count one token. Returns whether it was the last."""
        self.num_left -= 1
        return self.num_left <= 0

    def name_block(self, index: int) -> BlockHash:
        """Return a name that no other request's blocks have: what is generated is never asked for again."""
        return BlockHash(self._base | index)
