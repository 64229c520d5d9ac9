"""The parts of a head, built and wired to each other. Nothing runs yet: their life is `head.py`'s."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from hpcserve.cluster import Cluster, make_cluster
from hpcserve.comm.protocol import FrontendInfo, StopRequest
from hpcserve.comm.tls import Identity
from hpcserve.config.models import Config
from hpcserve.head import dashboard
from hpcserve.head.planning import Planning
from hpcserve.head.plugin import RoutingPlugin
from hpcserve.head.reconciler import Reconciler
from hpcserve.head.roster import Roster
from hpcserve.head.service import HeadService
from hpcserve.head.units import UnitPlacer
from hpcserve.observability.history import History
from hpcserve.observability.log_files import tail
from hpcserve.router.backfill import BackfillRule
from hpcserve.router.router import Router
from hpcserve.serve.batch_keeper import BatchKeeper
from hpcserve.serve.frontend_keeper import FrontendKeeper
from hpcserve.state import StateDir
from hpcserve.types import Status

_POLL_S = {"local": 0.25, "mpi": 0.25, "slurm": 1.0}  # while something is under way
_IDLE_POLL_S = {"local": 1.0, "mpi": 1.0, "slurm": 15.0}
_LOG_LINES = 12


class HeadLife(Protocol):
    """Whom the parts tell of what happens."""

    def status(self) -> Status:
        """Return what the deployment looks like now."""
        ...

    def request_stop(self, request: StopRequest) -> None:
        """End soon."""
        ...

    def on_frontend(self, info: FrontendInfo, is_there: bool) -> None:
        """A frontend has connected, or has gone."""
        ...

    def on_change(self) -> None:
        """A worker has changed."""
        ...

    def on_load(self) -> None:
        """Only the load of a worker has changed."""
        ...


@dataclass(frozen=True, kw_only=True)
class HeadParts:
    """What a head is made of."""

    router: Router
    roster: Roster
    plugin: RoutingPlugin
    service: HeadService
    cluster: Cluster
    reconciler: Reconciler
    planning: Planning
    frontends: FrontendKeeper
    batches: BatchKeeper
    history: History


def build_parts(config: Config, state: StateDir, life: HeadLife, host: str | None) -> HeadParts:
    """Build everything; frontends listen on `host` if one is given.

    Raises `HpcserveError` where the configuration does not fit this host.
    """
    backfill = BackfillRule(config.batches.priority, config.batches.max_share)
    router = Router(config.router, config.engine.block_size, backfill, config.renewal.leave_s)
    roster = Roster(router, life.on_change, on_load=life.on_load)
    cluster = make_cluster(config, state.path)
    frontends = FrontendKeeper(state, config.frontend, host)
    plugin = RoutingPlugin(roster, UnitPlacer(router, roster, config.engine.block_size))
    reconciler = Reconciler(
        config,
        cluster,
        roster,
        state,
        poll_s=_POLL_S[cluster.kind],
        idle_poll_s=_IDLE_POLL_S[cluster.kind],
        tail=lambda worker: "\n".join(tail(state.logs / f"{worker}.log", _LOG_LINES)),
        tell=plugin.command,
    )
    service = HeadService(
        router,
        Identity(state.tls_cert, state.tls_key),
        max_wait_s=config.router.queue.max_wait_s,
        make_status=life.status,
        on_frontend=life.on_frontend,
        on_stop=life.request_stop,
        is_ours=frontends.takes,
    )
    planning = Planning(
        config,
        state,
        router,
        roster,
        reconciler,
        traffic=service.traffic.total,
        tell=plugin.command,
        on_change=life.on_change,
        can_resize=cluster.kind != "mpi",  # an allocation has the ranks that it has
    )
    service.make_plan = planning.report
    return HeadParts(
        router=router,
        roster=roster,
        plugin=plugin,
        service=service,
        cluster=cluster,
        reconciler=reconciler,
        planning=planning,
        frontends=frontends,
        batches=BatchKeeper(config, state),
        history=History(dashboard.NUM_POINTS),
    )
