"""Load and cache of each worker over virtual time, as it reports them. It is what a plot is drawn from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from hpcserve.simulate.record import Gaps, Record
from hpcserve.types import LoadReport, WorkerId


@dataclass
class Track:
    """One worker's samples, in order of time."""

    times_s: list[float] = field(default_factory=list)
    requests: list[int] = field(default_factory=list)  # running and waiting
    kv_usage: list[float] = field(default_factory=list)  # share of blocks that requests hold
    cached_blocks: list[int] = field(default_factory=list)  # that the router knows of


@dataclass
class Timeline:
    """The tracks of all workers, and the latencies of all requests once the replay is over."""

    tracks: dict[WorkerId, Track] = field(default_factory=dict)
    ttft_ms: list[float] = field(default_factory=list)
    e2e_ms: list[float] = field(default_factory=list)
    itl_ns: dict[int, int] = field(default_factory=dict)  # gap to count

    def add(self, now: float, worker: WorkerId, load: LoadReport, cached_blocks: int) -> None:
        """Note what a worker reported."""
        track = self.tracks.setdefault(worker, Track())
        track.times_s.append(now)
        track.requests.append(load.num_running + load.num_waiting)
        track.kv_usage.append(load.kv_usage)
        track.cached_blocks.append(cached_blocks)

    def close(self, records: Iterable[Record], gaps: Gaps) -> None:
        """Note the latencies of the requests that have ended."""
        done = [record for record in records if record.ended_at is not None]
        self.ttft_ms = [record.ttft_s * 1000 for record in done]
        self.e2e_ms = [record.e2e_s * 1000 for record in done]
        self.itl_ns = dict(gaps.counts)
