"""What a deployment is doing."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from hpcserve.types.ids import WorkerId
from hpcserve.types.traffic import Traffic
from hpcserve.types.workers import EndCause, LoadReport, WorkerInfo


class Phase(StrEnum):
    """Life of a deployment."""

    STARTING = "starting"  # no worker is READY yet
    SERVING = "serving"  # the endpoint answers
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


class Status(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What `hpcserve status` shows, and what a frontend is told when the workers change."""

    name: str
    phase: Phase
    model: str
    mode: str  # "aggregated" or "disaggregated"
    policy: str
    cluster: str  # "local", "slurm" or "mpi"
    endpoint: str | None = None  # base URL, ends in /v1
    unix_socket: str | None = None  # path; the endpoint is there too, or only
    dashboard: str | None = None  # URL
    frontend_pid: int | None = None  # the first that is connected
    frontend_pids: tuple[int, ...] = ()  # all that are
    head_pid: int | None = None
    head_host: str | None = None
    started_at: float = 0.0  # Unix time
    wanted: dict[str, int] = {}  # workers by pool
    workers: tuple[WorkerInfo, ...] = ()
    load: dict[WorkerId, LoadReport] = {}
    num_waiting: int = 0  # requests that no worker was chosen for yet
    num_placed: int = 0  # requests that have their place on a worker
    num_backfilling: int = 0  # the same of batches' requests, which wait for room
    traffic: Traffic | None = None  # of all frontends since the head started
    ends: dict[EndCause, int] = {}  # workers that ended since the deployment was started, by cause
    excluded_nodes: dict[str, str] = {}  # nodes that get no worker any more, and why
    plan: str = ""  # the planner's last decision and its reason
    num_planned: dict[str, int] = {}  # decisions of the planner that were carried out: "flip", "grow", "shrink"
    wakes: bool = False  # whether requests may come while there is no worker: they have one started
    warnings: tuple[str, ...] = ()
    detail: str = ""  # why it failed
