"""What a deployment would cost, and when it would serve: before a job is submitted. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from statistics import median

import msgspec

from hpcserve.cluster.slurm_output import Partition
from hpcserve.config.models import Config, SlurmConfig
from hpcserve.doctor.durations import hours_in_words, in_words
from hpcserve.worker_log import WorkerLife

_NUM_LIVES = 50  # the newest say more
_NOW_S = 30.0


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """Hours of what is paid for. A worker's walltime bounds it only where workers are not renewed."""

    unit: str  # "GPU-hours", "node-hours" (whole nodes without GPUs), "worker-hours"
    per_worker: int  # units of one worker: its GPUs, or 1
    num_workers: int
    min_workers: int  # with the planner; else the same
    max_workers: int
    per_hour: float  # of service, all workers READY
    walltime_s: float | None  # of one worker; None: no limit is known
    is_renewed: bool

    @property
    def at_most(self) -> float | None:
        """Units until the last walltime is over; None where nothing but `down` ends it."""
        if self.is_renewed or self.walltime_s is None:
            return None
        return self.max_workers * self.per_worker * self.walltime_s / 3600


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """When the first worker would serve. Seconds from now; None: nobody knows."""

    wait_s: float | None = None  # in the queue
    wait_source: str = ""  # who says so
    all_wait_s: float | None = None  # until so many nodes are free at once as workers are wanted; whole nodes only
    load_s: float | None = None  # from its job's start to READY
    num_learned: int = 0  # workers that this was learned from
    problem: str = ""  # why Slurm would not take such a job, or does not answer


def price(config: Config, partition: Partition, walltime_s: float | None) -> Price:
    """Return what `config` would cost on a partition, where a job may run for so long (None: without end)."""
    num, planner = sum(config.pools.sizes.values()), config.planner
    per_worker, unit = _units(config.cluster.slurm, partition)
    plans = planner.enabled
    return Price(
        unit=unit,
        per_worker=per_worker,
        num_workers=num,
        min_workers=planner.min_workers if plans and planner.min_workers is not None else num,
        max_workers=planner.max_workers if plans and planner.max_workers is not None else num,
        per_hour=float(num * per_worker),
        walltime_s=walltime_s,
        is_renewed=config.renewal.enabled and walltime_s is not None,
    )


def learned(lives: Iterable[WorkerLife], kind: str) -> tuple[float | None, float | None, int]:
    """Return the usual wait in the queue and load time of earlier workers, in seconds, and how many there were."""
    ready = [life for life in lives if life.cluster == kind and life.started_at and life.ready_at][-_NUM_LIVES:]
    if not ready:
        return None, None, 0
    waits = [max(0.0, (life.started_at or 0.0) - life.submitted_at) for life in ready]
    loads = [max(0.0, (life.ready_at or 0.0) - (life.started_at or 0.0)) for life in ready]
    return median(waits), median(loads), len(ready)


def describe(price: Price | None, start: Start, now: float) -> Iterator[tuple[str, str]]:
    """Return the lines for people: a word, and what is to be said."""
    yield "start", _start_words(start, now)
    if price is None:
        return
    yield "price", _price_words(price)
    if price.min_workers != price.max_workers:
        low, high = (hours_in_words(num * price.per_worker) for num in (price.min_workers, price.max_workers))
        yield "planner", f"{price.min_workers} to {price.max_workers} workers: {low} to {high} {price.unit} an hour"


def _units(slurm: SlurmConfig, partition: Partition) -> tuple[int, str]:
    if slurm.exclusive and slurm.gpu_request != "none":
        gpus = slurm.requested_gpus or max((sum(node.gpus.values()) for node in partition.nodes), default=0)
    else:
        gpus = slurm.requested_gpus
    if gpus:
        return gpus, "GPU-hours"
    return 1, "node-hours" if slurm.exclusive else "worker-hours"


def _start_words(start: Start, now: float) -> str:
    if start.problem:
        return f"not known: {start.problem}"
    load = "" if start.load_s is None else f", and it takes {in_words(start.load_s)} to load"
    from_whom = f" (as {start.num_learned} workers of this deployment did)" if start.load_s is not None else ""
    if start.wait_s is None:
        return f"nobody knows when Slurm would start the first worker{load}{from_whom}"
    when = _when(start.wait_s, now)
    ready = f": READY about {_clock(now + start.wait_s + start.load_s, now)}" if start.load_s is not None else ""
    source = f" by {start.wait_source}" if start.wait_source else ""
    if start.all_wait_s is not None:
        source += f", all of them at once {_when(start.all_wait_s, now)}"
    return f"the first worker would start {when}{source}{load}{from_whom}{ready}"


def _when(wait_s: float, now: float) -> str:
    return "now" if wait_s < _NOW_S else f"in {in_words(wait_s)} ({_clock(now + wait_s, now)})"


def _price_words(price: Price) -> str:
    each = f" x {price.per_worker} GPUs" if price.unit == "GPU-hours" and price.per_worker != 1 else ""
    size = f"{price.num_workers} worker{'s' * (price.num_workers != 1)}{each}"
    unit = price.unit.removesuffix("s") if price.per_hour == 1 else price.unit
    rate = f"{size}: {hours_in_words(price.per_hour)} {unit} for each hour of service"
    if price.at_most is not None and price.walltime_s is not None:
        return f"{rate}, {hours_in_words(price.at_most)} at most (walltime {in_words(price.walltime_s)}, not renewed)"
    if price.is_renewed and price.walltime_s is not None:
        return f"{rate}; workers are renewed every {in_words(price.walltime_s)}, so only `hpcserve down` ends it"
    return f"{rate}, until `hpcserve down`"


def _clock(moment: float, now: float) -> str:
    pattern = "%H:%M" if moment - now < 20 * 3600 else "%a %d %b %H:%M"
    return datetime.fromtimestamp(moment).strftime(pattern)
