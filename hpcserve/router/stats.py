"""What a router tells about itself, for status and metrics."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import msgspec

from hpcserve.types import LoadReport


class WorkerLoad(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the router has placed on one worker, and what the worker last said about itself."""

    num_requests: int = 0  # placed and not released
    queued_prefill_tokens: int = 0  # prompt tokens placed for computing, of which nothing came back yet
    active_blocks: int = 0  # KV blocks of the placed requests' prompts, beyond what the worker held
    unbooked_requests: int = 0  # in the last report beyond those placed: left over by an earlier head
    unbooked_prefill_tokens: int = 0
    indexed_blocks: int = 0  # blocks that the prefix index knows of
    report: LoadReport | None = None


class RouterStats(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Counters over the router's life; `indexed_blocks` and `active_requests` are of now."""

    policy: str
    assignments: dict[str, int] = {}  # by policy
    remote_prefills: int = 0  # prompts sent to a prefill worker
    local_prefills: int = 0  # prompts that a decode worker computes: short, mostly cached, or an aggregated pool
    prefill_fallbacks: int = 0  # of those, because no prefill worker was READY
    prompt_tokens: int = 0
    expected_cached_tokens: int = 0
    event_gaps: int = 0  # batches that left the index inexact
    active_requests: int = 0
    indexed_blocks: int = 0


class Offered(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The requests that ever came, but those of batches, and how long their prompts take to compute, as predicted."""

    num_requests: int = 0
    work_ms: float = 0.0
    work_squares: float = 0.0  # of each one's, in ms^2, added up


@dataclass
class Counts:
    """The counters behind `RouterStats`."""

    assignments: Counter[str] = field(default_factory=Counter)
    remote_prefills: int = 0
    local_prefills: int = 0
    prefill_fallbacks: int = 0
    prompt_tokens: int = 0
    expected_cached_tokens: int = 0
    event_gaps: int = 0
    offered: Offered = field(default_factory=Offered)

    def came(self, work_ms: float) -> None:
        """Count a request whose prompt takes so long to compute."""
        sofar = self.offered
        self.offered = Offered(
            num_requests=sofar.num_requests + 1,
            work_ms=sofar.work_ms + work_ms,
            work_squares=sofar.work_squares + work_ms * work_ms,
        )

    def placed(self, policy: str, prompt_tokens: int, cached_tokens: int, *, is_remote: bool) -> None:
        """Count one assignment."""
        self.assignments[policy] += 1
        self.prompt_tokens += prompt_tokens
        self.expected_cached_tokens += cached_tokens
        if is_remote:
            self.remote_prefills += 1
        else:
            self.local_prefills += 1
