"""What a head says of its deployment: put together from what its parts know. Changes nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass

from hpcserve.config.models import Config
from hpcserve.head.planning import knows_engine
from hpcserve.serve.head_parts import HeadParts
from hpcserve.types import Phase, Role, Status, WorkerState


@dataclass(kw_only=True)
class Moment:
    """What the head knows of itself. Its one owner changes it."""

    started_at: float  # Unix time
    warnings: tuple[str, ...]
    phase: Phase = Phase.STARTING
    detail: str = ""
    dashboard: str | None = None


def describe(config: Config, parts: HeadParts, moment: Moment) -> Status:
    """Return what the deployment looks like now."""
    frontends = parts.frontends.infos
    frontend = frontends[0] if frontends else None
    return Status(
        name=config.name,
        phase=moment.phase,
        model=config.served_name,
        mode=config.pools.mode,
        policy=config.router.policy,
        cluster=parts.cluster.kind,
        endpoint=frontend.endpoint if frontend else None,
        unix_socket=next((each.unix_socket for each in frontends if each.unix_socket), None),
        frontend_pid=frontend.pid if frontend else None,
        frontend_pids=tuple(each.pid for each in frontends),
        dashboard=moment.dashboard,
        head_pid=os.getpid(),
        head_host=os.uname().nodename,
        started_at=moment.started_at,
        wanted=parts.reconciler.sizes,
        workers=parts.roster.workers(),
        load=parts.roster.loads(),
        num_waiting=parts.router.num_waiting,
        num_placed=parts.router.stats().active_requests,
        num_backfilling=parts.router.num_backfilling,
        traffic=parts.service.traffic.total(),
        ends=parts.reconciler.ends,
        excluded_nodes=parts.reconciler.excluded_nodes,
        plan=parts.planning.last,
        num_planned=dict(parts.planning.counts),
        wakes=parts.planning.wakes,
        warnings=(*moment.warnings, *_warnings(parts)),
        detail=moment.detail,
    )


def is_usable(config: Config, parts: HeadParts) -> bool:
    """Return whether requests are answered: by a frontend, and a READY worker of every role that is needed."""
    if parts.planning.wakes and knows_engine(parts.roster.workers()):
        return bool(parts.frontends.infos)  # whoever asks has a worker started
    ready = {info.role for info in parts.roster.workers() if info.state is WorkerState.READY}
    needed = {Role(pool) for pool in config.pools.sizes}
    return bool(parts.frontends.infos) and needed <= ready


def _warnings(parts: HeadParts) -> list[str]:
    excluded = [f"no more workers on {node}: {why}" for node, why in parts.reconciler.excluded_nodes.items()]
    return excluded + [
        f"{info.worker}: {warning}"
        for info in parts.roster.workers()
        if info.engine is not None and not info.state.is_final
        for warning in info.engine.warnings
    ]
