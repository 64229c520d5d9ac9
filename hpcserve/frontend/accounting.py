"""Begins the record of every HTTP request, and makes one log line and one count of it when it has ended."""

from __future__ import annotations

import logging
import re
import secrets
import time

from aiohttp import web

from hpcserve.errors import RateLimited
from hpcserve.frontend.context import FRONTEND, RECORD, RequestRecord
from hpcserve.observability.logging import LogEvent

log = logging.getLogger(__name__)

_CLIENT_CLOSED_REQUEST = 499  # as nginx counts clients that hang up
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")
_MAX_ERROR_CHARS = 300


class RequestLine(LogEvent, frozen=True, kw_only=True, omit_defaults=True):
    """What is logged of one request. None: there is no such thing."""

    method: str
    route: str
    status: int
    request_id: str
    job_id: str | None = None  # ids that head and workers log begin with it
    trace_id: str | None = None
    tenant: str | None = None
    model: str | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    generated_tokens: int | None = None
    ttft_ms: float | None = None
    e2e_ms: float
    finish_reason: str | None = None
    error: str | None = None

    def summary(self) -> str:
        """Return what was asked and how that ended."""
        return f"{self.method} {self.route} {self.status}"

    def __str__(self) -> str:
        text = f"{self.method} {self.route} {self.status} id={self.request_id}"
        if self.trace_id is not None:
            text += f" trace={self.trace_id}"
        if self.tenant is not None:
            text += f" tenant={self.tenant}"
        if self.job_id is not None:
            counts = f"prompt={self.prompt_tokens} cached={self.cached_tokens} generated={self.generated_tokens}"
            text += f" job={self.job_id} model={self.model} {counts} finish={self.finish_reason}"
        if self.ttft_ms is not None:
            text += f" ttft={self.ttft_ms:.1f}ms"
        text += f" e2e={self.e2e_ms:.1f}ms"
        return text if self.error is None else f"{text} error={' '.join(self.error.split())}"


def begin(request: web.Request) -> RequestRecord:
    """Return the record of a request that has just come, which is kept with it."""
    own_id = secrets.token_hex(16)
    given = request.headers.get("x-request-id")
    traceparent = request.headers.get("traceparent")
    trace = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    record = request[RECORD] = RequestRecord(
        given if given and _REQUEST_ID.fullmatch(given) else own_id, own_id, trace[1] if trace else None
    )
    return record


def account_disconnect(request: web.Request, record: RequestRecord) -> int:
    """Account a request whose client hung up. Returns the status that stands for it."""
    request.app[FRONTEND].metrics.disconnects += 1
    account(request, record, _CLIENT_CLOSED_REQUEST)
    return _CLIENT_CLOSED_REQUEST


def account(request: web.Request, record: RequestRecord, status: int) -> None:
    """Count and log a request that was answered with `status`."""
    resource = request.match_info.route.resource
    route = resource.canonical if resource is not None else "unknown"
    metrics, tenant = request.app[FRONTEND].metrics, record.tenant.name
    metrics.requests[route, status] += 1
    if tenant:
        metrics.tenants[tenant].count_request(is_rate_limited=status == RateLimited.http_status, now=time.time())
    level = logging.INFO if request.method == "POST" else logging.DEBUG
    if log.isEnabledFor(level):
        log.log(level, _line(request.method, route, record, status))


def _line(method: str, route: str, record: RequestRecord, status: int) -> RequestLine:
    has_run = record.job_id is not None
    return RequestLine(
        method=method,
        route=route,
        status=status,
        request_id=record.request_id,
        job_id=record.job_id,
        trace_id=record.trace_id,
        tenant=record.tenant.name or None,
        model=record.model,
        prompt_tokens=record.prompt_tokens if has_run else None,
        cached_tokens=record.cached_tokens if has_run else None,
        generated_tokens=record.generated_tokens if has_run else None,
        ttft_ms=None if record.ttft_s is None else round(record.ttft_s * 1e3, 2),
        e2e_ms=round((time.perf_counter() - record.started_at) * 1e3, 2),
        finish_reason=record.finish_reason,
        error=record.error[:_MAX_ERROR_CHARS] if record.error else None,
    )
