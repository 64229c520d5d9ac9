"""The routes that tell about the service: which model, whether it lives, whether it is ready, what it counted."""

from __future__ import annotations

import asyncio
import logging

import msgspec
from aiohttp import web
from prometheus_client import Metric

from hpcserve.errors import StorageFailed, Unavailable
from hpcserve.frontend.admission import check_model
from hpcserve.frontend.backend import context_length, why_not_ready
from hpcserve.frontend.context import FRONTEND, RECORD, Frontend
from hpcserve.frontend.errors import error_response, json_response
from hpcserve.frontend.replies import Alive, Healthy, Model, ModelList
from hpcserve.observability.batch_metrics import batch_families

log = logging.getLogger(__name__)

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


async def list_models(request: web.Request) -> web.Response:
    """GET /v1/models: the served model; nothing while no worker is ready, or for a key that is not good for it."""
    frontend = request.app[FRONTEND]
    is_ready = why_not_ready(frontend.backend.status()) is None
    is_shown = is_ready and request[RECORD].tenant.may_use(frontend.config.served_name)
    return json_response(msgspec.json.encode(ModelList(object="list", data=[_model(frontend)] if is_shown else [])))


async def get_model(request: web.Request) -> web.Response:
    """GET /v1/models/{id}."""
    frontend = request.app[FRONTEND]
    request[RECORD].tenant.check_model(request.match_info["id"])
    check_model(frontend, request.match_info["id"])
    reason = why_not_ready(frontend.backend.status())
    if reason is not None:
        raise Unavailable(f"the model is not served yet: {reason}")
    return json_response(msgspec.json.encode(_model(frontend)))


async def health(request: web.Request) -> web.Response:
    """GET /health: 200 when requests are served, 503 with the reason when not."""
    status = request.app[FRONTEND].backend.status()
    reason = why_not_ready(status)
    if reason is not None:
        return error_response(Unavailable(reason))
    return json_response(msgspec.json.encode(Healthy(status="ok", phase=str(status.phase))))


async def live(request: web.Request) -> web.Response:
    """GET /live: the process answers; nothing else is claimed."""
    return json_response(msgspec.json.encode(Alive(status="ok")))


async def metrics(request: web.Request) -> web.Response:
    """GET /metrics: Prometheus' text format, the sums over all frontends of the deployment.

    What each tenant used, only the deployment's own key is told. Raises `Unavailable` where the others cannot be asked.
    """
    counted = request.app[FRONTEND].metrics
    others = None if counted.siblings is None else await counted.siblings()
    more = await _batches(request.app[FRONTEND])
    text = counted.render(with_tenants=request[RECORD].tenant.sees_tenants, others=others, more=more)
    return web.Response(body=text, headers={"Content-Type": _METRICS_TYPE})


async def _batches(frontend: Frontend) -> list[Metric]:
    """Return what there is of batches; nothing where they cannot be read: the other metrics are wanted then."""
    if frontend.jobs is None:
        return []
    try:
        by_status, counts = await asyncio.to_thread(frontend.jobs.batches.counts)
    except StorageFailed as err:
        log.warning("metrics are without batches: %s", err.message)
        return []
    return list(batch_families(by_status, counts.total, counts.completed, counts.failed))


def _model(frontend: Frontend) -> Model:
    name = frontend.config.served_name
    return Model(
        id=name,
        object="model",
        created=frontend.created_at,
        owned_by="hpcserve",
        root=name,
        parent=None,
        max_model_len=context_length(frontend.backend.status()),
    )
