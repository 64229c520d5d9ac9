"""What a deployment did in the last minutes, second by second, for pages that people look at. Prometheus keeps years.

It is made from what the status says each second, so that whoever knows the status has the same history: the head for
the dashboard, each frontend for its page. It is kept in memory, and bounded.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

from hpcserve.observability.metrics import ITL_S, TTFT_S
from hpcserve.observability.quantiles import quantile
from hpcserve.types import LoadReport, Status, Traffic, WorkerId, WorkerState

INTERVAL_S = 1.0
"""Between two points."""
RATE_WINDOW_S = 5.0
LATENCY_WINDOW_S = 30.0
"""Rates, and latencies and shares, are those of so many seconds before each point."""


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One moment. None: nothing happened that could be measured."""

    at: float  # Unix time
    ttft_p50_ms: float | None
    ttft_p90_ms: float | None
    itl_p50_ms: float | None
    itl_p90_ms: float | None
    generated_tokens_per_s: float
    prompt_tokens_per_s: float
    finished_per_s: float  # sequences
    running: int  # sequences that the engines compute
    waiting: int  # in the engines, or for one
    kv_usage: float | None  # share of KV blocks in use, the mean of READY workers
    prefix_hits: float | None  # share of the prompt tokens, but those pulled, that a cache had
    pulled_tokens_per_s: float  # whose KV came from another worker
    remote_prefills_per_s: float
    prefix_pulls_per_s: float


class History:
    """The newest points, oldest first."""

    def __init__(self, num_points: int) -> None:
        self.points: deque[Point] = deque(maxlen=num_points)
        self._engines = _Engines()
        self._marks: deque[_Mark] = deque()

    def take(self, status: Status, traffic: Traffic, now: float) -> None:
        """Add the point of the Unix time `now`."""
        if self._marks and _fell(traffic, self._marks[-1].traffic):
            self._marks.clear()  # who counts began anew
        mark = _Mark(now, traffic, self._engines.take(status.load))
        self._marks.append(mark)
        while self._marks[0].at < now - LATENCY_WINDOW_S:
            self._marks.popleft()
        self.points.append(self._point(status, mark))

    def _point(self, status: Status, mark: _Mark) -> Point:
        recent, lately = self._since(mark, RATE_WINDOW_S), self._since(mark, LATENCY_WINDOW_S)
        ready = [
            each.worker for each in status.workers if each.state is WorkerState.READY and each.worker in status.load
        ]
        in_caches = lately.work.prompt - lately.work.pulled
        return Point(
            at=mark.at,
            ttft_p50_ms=_ms(quantile(0.5, lately.traffic.ttft, TTFT_S)),
            ttft_p90_ms=_ms(quantile(0.9, lately.traffic.ttft, TTFT_S)),
            itl_p50_ms=_ms(quantile(0.5, lately.traffic.itl, ITL_S)),
            itl_p90_ms=_ms(quantile(0.9, lately.traffic.itl, ITL_S)),
            generated_tokens_per_s=recent.rate(recent.work.generated),
            prompt_tokens_per_s=recent.rate(recent.work.prompt),
            finished_per_s=recent.rate(recent.traffic.finished),
            running=sum(each.num_running for each in status.load.values()),
            waiting=status.num_waiting + sum(each.num_waiting for each in status.load.values()),
            kv_usage=sum(status.load[each].kv_usage for each in ready) / len(ready) if ready else None,
            prefix_hits=min(1.0, lately.work.cached / in_caches) if in_caches > 0 else None,
            pulled_tokens_per_s=recent.rate(recent.work.pulled),
            remote_prefills_per_s=recent.rate(recent.traffic.remote_prefills),
            prefix_pulls_per_s=recent.rate(recent.traffic.prefix_pulls),
        )

    def _since(self, mark: _Mark, window_s: float) -> _Span:
        first = next(each for each in self._marks if each.at >= mark.at - window_s)
        work = _Work(*(now - then for now, then in zip(mark.work, first.work, strict=True)))
        return _Span(mark.at - first.at, mark.traffic - first.traffic, work)


async def keep(history: History, look: Callable[[], tuple[Status, Traffic]]) -> None:
    """Add a point every `INTERVAL_S` until cancelled."""
    while True:
        history.take(*look(), time.time())
        await asyncio.sleep(INTERVAL_S)


class _Work(NamedTuple):
    """Tokens of all engines."""

    prompt: int
    generated: int
    cached: int
    pulled: int


class _Mark(NamedTuple):
    at: float
    traffic: Traffic
    work: _Work


class _Span(NamedTuple):
    """What happened between two marks."""

    seconds: float
    traffic: Traffic
    work: _Work

    def rate(self, count: int) -> float:
        return round(count / self.seconds, 3) if self.seconds > 0 else 0.0


class _Engines:
    """Adds up what engines count, over the lives of workers: a worker's first report is where its counting begins."""

    def __init__(self) -> None:
        self._last: dict[WorkerId, _Work] = {}
        self._total = _Work(0, 0, 0, 0)

    def take(self, loads: Mapping[WorkerId, LoadReport]) -> _Work:
        now = {worker: _work(load) for worker, load in loads.items()}
        for worker, work in now.items():
            steps = zip(self._total, work, self._last.get(worker, work), strict=True)
            self._total = _Work(*(total + max(0, new - old) for total, new, old in steps))
        self._last = now
        return self._total


def _work(load: LoadReport) -> _Work:
    return _Work(
        load.prompt_tokens_total, load.generated_tokens_total, load.cached_tokens_total, load.pulled_tokens_total
    )


def _fell(now: Traffic, before: Traffic) -> bool:
    since = now - before
    return since.finished < 0 or any(count < 0 for count in (*since.ttft, *since.itl))


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 2)
