"""Makes observations of what the router, the workers and the frontends tell. Reads only; the caller's clock."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING

from hpcserve.config.planning_models import PlannerConfig
from hpcserve.observability.metrics import ITL_S, TTFT_S
from hpcserve.observability.quantiles import quantile
from hpcserve.planner.observation import Observation, Sight
from hpcserve.types import Traffic, WorkDone, WorkerId, WorkerInfo, WorkerState

if TYPE_CHECKING:
    from hpcserve.router.router import Router  # which loads numpy: commands that show a plan do without

_SHARE = 0.9  # of requests and tokens that latencies are promised for


class Observer:
    """Keeps what was counted up to the last observation. Shown every interval once."""

    def __init__(self, config: PlannerConfig, router: Router) -> None:
        self._config = config
        self._router = router
        self._offered = router.outlook.offered
        self._work: dict[WorkerId, WorkDone] = {}
        self._traffic: Traffic | None = None
        self._at: float | None = None

    def observe(
        self,
        now: float,
        workers: Iterable[WorkerInfo],
        sizes: Mapping[str, int],
        traffic: Traffic,
        wait_s: float | None = None,
    ) -> Observation:
        """Return what there is to see at `now`, in seconds. `sizes`: workers wanted by pool, `traffic`: all so far."""
        infos = [info for info in workers if not info.state.is_final and info.state is not WorkerState.DRAINING]
        offered, before = self._router.outlook.offered, self._offered
        news = traffic - (self._traffic or traffic)
        interval_s = self._config.interval_s if self._at is None else now - self._at
        self._offered, self._traffic, self._at = offered, traffic, now
        return Observation(
            now=now,
            interval_s=interval_s,
            sizes=dict(sizes),
            workers=tuple(self._sights(infos)),
            num_arrived=offered.num_requests - before.num_requests,
            arrived_ms=offered.work_ms - before.work_ms,
            arrived_squares=offered.work_squares - before.work_squares,
            num_waiting=self._router.num_waiting + self._router.num_backfilling,
            waiting_ms=self._router.outlook.waiting_ms,
            wants_room=self._router.outlook.wants_room,
            gap_ms=self._gap_ms(infos),
            decode_scale=self._decode_scale(infos),
            ttft_p90_ms=_p90_ms(news.ttft, TTFT_S),
            itl_p90_ms=_p90_ms(news.itl, ITL_S),
            late_ttft=_late(news.ttft, TTFT_S, self._config.ttft_ms),
            late_itl=_late(news.itl, ITL_S, self._config.itl_ms),
            wait_s=wait_s,
        )

    def _sights(self, infos: Iterable[WorkerInfo]) -> Iterable[Sight]:
        loads = self._router.loads()
        for info in infos:
            load = loads.get(info.worker)
            report = None if load is None else load.report
            is_ready = info.state is WorkerState.READY and load is not None
            yield Sight(
                worker=info.worker,
                pool=info.pool,
                role=info.role,
                state="ready" if is_ready else "coming",
                num_requests=0 if load is None else load.num_requests + load.unbooked_requests,
                queued_ms=0.0 if load is None else self._router.outlook.queued_ms(info.worker),
                kv_usage=0.0 if report is None else min(1.0, max(0.0, report.kv_usage)),
            )

    def _gap_ms(self, infos: Iterable[WorkerInfo]) -> float | None:
        """Return the time that decoding workers took for a step, what they prefilled in between included."""
        loads, seconds, steps = self._router.loads(), 0.0, 0
        before, self._work = self._work, {}
        for info in infos:
            load = loads.get(info.worker)
            if load is None or load.report is None or not info.role.decodes:
                continue
            work = self._work[info.worker] = load.report.work
            past = before.get(info.worker, work)
            if work.decode_steps > past.decode_steps:
                steps += work.decode_steps - past.decode_steps
                seconds += work.decode_s - past.decode_s + work.prefill_s - past.prefill_s
        return round(seconds / steps * 1000, 2) if steps else None

    def _decode_scale(self, infos: Iterable[WorkerInfo]) -> float:
        scales = [self._router.outlook.timing_of(info.worker).decode_scale for info in infos if info.role.decodes]
        return median(scales) if scales else 1.0


def _p90_ms(counts: Sequence[int], bounds: Sequence[float]) -> float | None:
    value = quantile(_SHARE, counts, bounds) if _is_count(counts) else None
    return None if value is None else round(value * 1000, 1)


def _late(counts: Sequence[int], bounds: Sequence[float], most_ms: float) -> float:
    """Return the share that is in buckets which begin at `most_ms` or later."""
    if not _is_count(counts):
        return 0.0
    first = bisect_left(bounds, most_ms / 1000 - 1e-9) + 1
    return sum(counts[first:]) / sum(counts)


def _is_count(counts: Sequence[int]) -> bool:
    """Whether something was counted; a frontend that has begun anew makes negative ones."""
    return any(counts) and min(counts) >= 0
