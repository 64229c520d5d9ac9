"""GET /status: what the deployment does, as JSON for the page and for scripts. It decides nothing and counts nothing.

Like `/metrics` it names no tenant, and any key may have it. Where the deployment runs and what its logs said (hosts,
reasons, warnings, the dashboard) is for the operator, and for everybody where no key is asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from functools import partial

import msgspec
from aiohttp import web

from hpcserve.frontend.backend import context_length, known_workers
from hpcserve.frontend.context import FRONTEND, RECORD, Frontend
from hpcserve.frontend.errors import json_response
from hpcserve.frontend.replies import Reply
from hpcserve.observability.history import History, Point, keep
from hpcserve.types import LoadReport, Status, Traffic, WorkerInfo

NUM_POINTS = 120
"""That a frontend keeps: two minutes."""
HISTORY = web.AppKey("history", History)


class WorkerLoad(Reply, frozen=True):
    """What a worker's engine said last."""

    running: int
    waiting: int
    kv_usage: float  # share of its KV blocks, 0 to 1
    prefix_hits: float | None  # share of the prompt tokens that it did not have to compute; None: it had no prompts


class Worker(Reply, frozen=True):
    """One worker. What only the operator is told is null for others."""

    id: str
    pool: str
    role: str
    state: str
    host: str | None
    detail: str | None  # why it is pending, or how it failed
    ends_at: float | None  # Unix time at which its job ends
    cause: str | None  # of its end, once it is over
    load: WorkerLoad | None


class Series(Reply, frozen=True):
    """The last minutes, oldest first, one item a second in every list. Null: nothing happened that could be measured.

    Latencies and prefix hits are those of the 30 seconds before, rates those of the 5 seconds before.
    """

    at: list[float]
    ttft_p50_ms: list[float | None]
    ttft_p90_ms: list[float | None]
    itl_p50_ms: list[float | None]
    itl_p90_ms: list[float | None]
    generated_tokens_per_s: list[float]
    prompt_tokens_per_s: list[float]
    running: list[int]
    waiting: list[int]
    kv_usage: list[float | None]
    prefix_hits: list[float | None]


class DeploymentStatus(Reply, frozen=True):
    """What the deployment does. What only the operator is told is null or empty for others."""

    name: str
    phase: str
    model: str | None  # null for a key that is not good for it
    max_model_len: int | None  # tokens; null while no worker is ready
    mode: str
    policy: str
    cluster: str
    started_at: float  # Unix time
    wanted: dict[str, int]  # workers by pool
    workers: list[Worker]
    ends: dict[str, int]  # workers that ended, by cause
    history: Series
    dashboard: str | None
    warnings: list[str]
    detail: str | None  # why it failed


async def show_status(request: web.Request) -> web.Response:
    """GET /status."""
    frontend, tenant = request.app[FRONTEND], request[RECORD].tenant
    may_chat, is_operator = tenant.may_use(frontend.config.served_name), tenant.sees_tenants
    points = request.app[HISTORY].points
    told = _status(frontend.backend.status(), points, may_chat=may_chat, is_operator=is_operator)
    return json_response(msgspec.json.encode(told), headers={"Cache-Control": "no-store"})


async def keep_history(app: web.Application) -> AsyncIterator[None]:
    """A context of the application: one point a second while it runs."""
    keeping = asyncio.create_task(keep(app[HISTORY], partial(_look, app[FRONTEND])))
    yield
    keeping.cancel()
    await asyncio.wait((keeping,))


def _look(frontend: Frontend) -> tuple[Status, Traffic]:
    """Return what is known of the deployment; of its traffic this frontend's, until the head has told that of all."""
    status = frontend.backend.status()
    return status, frontend.metrics.traffic() if status.traffic is None else status.traffic


def _status(status: Status, points: Iterable[Point], *, may_chat: bool, is_operator: bool) -> DeploymentStatus:
    return DeploymentStatus(
        name=status.name,
        phase=str(status.phase),
        model=status.model if may_chat else None,
        max_model_len=context_length(status) if known_workers(status) else None,
        mode=status.mode,
        policy=status.policy,
        cluster=status.cluster,
        started_at=status.started_at,
        wanted=status.wanted,
        workers=[_worker(each, status.load.get(each.worker), is_operator=is_operator) for each in status.workers],
        ends={str(cause): number for cause, number in status.ends.items()},
        history=_series(list(points)),
        dashboard=status.dashboard if is_operator else None,
        warnings=list(status.warnings) if is_operator else [],
        detail=status.detail if is_operator else None,
    )


def _worker(info: WorkerInfo, load: LoadReport | None, *, is_operator: bool) -> Worker:
    return Worker(
        id=info.worker,
        pool=info.pool,
        role=str(info.role),
        state=str(info.state),
        host=info.host if is_operator else None,
        detail=info.detail if is_operator else None,
        ends_at=info.ends_at,
        cause=None if info.cause is None else str(info.cause),
        load=None if load is None else _load(load),
    )


def _load(load: LoadReport) -> WorkerLoad:
    reused, prompts = load.cached_tokens_total + load.pulled_tokens_total, load.prompt_tokens_total
    return WorkerLoad(
        running=load.num_running,
        waiting=load.num_waiting,
        kv_usage=load.kv_usage,
        prefix_hits=min(1.0, reused / prompts) if prompts else None,
    )


def _series(points: list[Point]) -> Series:
    return Series(*([getattr(point, name) for point in points] for name in Series.__struct_fields__))
