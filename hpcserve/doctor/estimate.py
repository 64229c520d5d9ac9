"""Asks the cluster when a deployment would start, and puts the price beside it. Submits nothing."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec

from hpcserve.cluster import WorkerSpec, make_cluster, resolve_kind
from hpcserve.cluster.slurm_commands import estimate_start
from hpcserve.cluster.slurm_output import Partition
from hpcserve.cluster.slurm_room import find_partition
from hpcserve.cluster.slurm_settings import SlurmSettings
from hpcserve.cluster.slurm_survey import survey
from hpcserve.config.models import Config
from hpcserve.doctor.partition_checks import walltime_s
from hpcserve.doctor.price import Price, Start, describe, learned, price
from hpcserve.errors import ClusterError
from hpcserve.state import StateDir
from hpcserve.types import Role, WorkerId
from hpcserve.worker_log import WorkerLog

_FAR_S = 30 * 86400.0  # Slurm's word for "nobody knows"


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The start and the price of one deployment, at one moment."""

    start: Start
    price: Price | None  # None: there is none, as on this machine, or it is not known
    now: float  # Unix time

    def lines(self) -> list[tuple[str, str]]:
        """Return a word and a sentence for each."""
        return list(describe(self.price, self.start, self.now))

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        start = msgspec.to_builtins(self.start)
        wait_s, load_s = self.start.wait_s, self.start.load_s
        start["starts_at"] = None if wait_s is None else self.now + wait_s
        start["ready_at"] = None if wait_s is None or load_s is None else self.now + wait_s + load_s
        price = self.price and msgspec.to_builtins(self.price) | {"at_most": self.price.at_most}
        return {"start": start, "price": price}


async def estimate(config: Config, settings: SlurmSettings | None = None) -> Estimate:
    """Return what can be known beforehand; `settings` are Slurm's, where they were asked for already.

    Where Slurm does not answer, or would take no such job, the estimate says so.
    """
    kind, lives = resolve_kind(config), WorkerLog(StateDir.of(config.name)).read()
    usual_wait_s, load_s, num = learned(lives, kind)
    start = Start(load_s=load_s, num_learned=num)
    if kind != "slurm":
        start = msgspec.structs.replace(start, wait_s=0.0)
        return Estimate(start=start, price=None, now=time.time())
    partition, limit_s, trouble = await _where(config, settings)
    if not trouble:
        start, trouble = await _ask_slurm(config, start)
    if trouble:
        start = msgspec.structs.replace(start, problem=trouble)
    elif start.wait_s is None and usual_wait_s is not None:
        start = msgspec.structs.replace(start, wait_s=usual_wait_s, wait_source="earlier waits")
    cost = None if partition is None else price(config, partition, limit_s)
    return Estimate(start=start, price=cost, now=time.time())


async def _ask_slurm(config: Config, start: Start) -> tuple[Start, str]:
    """Return the start with Slurm's own estimates, as far as it makes any, and why it would not take such jobs."""
    cluster, sample = make_cluster(config, StateDir.of(config.name).path), _sample(config)
    try:
        first_s = _wait(await cluster.estimate_start(sample))
    except ClusterError as err:
        return start, f"Slurm would not take such jobs: {err.message}"
    if first_s is None:
        return start, ""
    num, all_s = sum(config.pools.sizes.values()), None
    if config.cluster.slurm.exclusive and num > 1:
        with suppress(ClusterError):  # more than a single job may have
            all_s = _wait(await estimate_start(cluster.render(sample), f"--nodes={num}", f"--ntasks={num}"))
    found = msgspec.structs.replace(start, wait_s=first_s, wait_source="Slurm's estimate", all_wait_s=all_s)
    return found, ""


def _wait(starts_at: float | None) -> float | None:
    wait_s = None if starts_at is None else max(0.0, starts_at - time.time())
    return wait_s if wait_s is not None and wait_s < _FAR_S else None


async def _where(config: Config, settings: SlurmSettings | None) -> tuple[Partition | None, float | None, str]:
    """Return the partition, how long a job may run there, and what is wrong with it."""
    try:
        settings = settings or await survey()
        partition = find_partition(settings.nodes, config.cluster.slurm.partition)
    except ClusterError as err:
        return None, walltime_s({}, config), err.message
    return partition, walltime_s(settings.partitions.get(partition.name, {}), config), ""


def _sample(config: Config) -> WorkerSpec:
    pool = next(iter(config.pools.sizes))
    return WorkerSpec(worker=WorkerId(f"{pool}-0"), pool=pool, role=Role(pool))
