"""Begins the record of every HTTP request, and makes a count, a log line and a span of it when it has ended."""

from __future__ import annotations

import logging
import re
import secrets
import time

from aiohttp import web

from hpcserve.errors import RateLimited
from hpcserve.frontend.context import FRONTEND, RECORD, RequestRecord
from hpcserve.frontend.request_line import RequestLine
from hpcserve.frontend.spans import begin_span, end_span

log = logging.getLogger(__name__)

_CLIENT_CLOSED_REQUEST = 499  # as nginx counts clients that hang up
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")
_MAX_ERROR_CHARS = 300


def begin(request: web.Request) -> RequestRecord:
    """Return the record of a request that has just come, which is kept with it."""
    own_id = secrets.token_hex(16)
    given = request.headers.get("x-request-id")
    traceparent = request.headers.get("traceparent")
    trace = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    record = request[RECORD] = RequestRecord(
        given if given and _REQUEST_ID.fullmatch(given) else own_id, own_id, trace[1] if trace else None
    )
    tracer = request.app[FRONTEND].tracer
    if tracer is not None and request.method == "POST":
        record.span = begin_span(tracer, request)
        if record.span is not None:
            record.trace_id = record.span.trace_id
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
    is_logged = log.isEnabledFor(level)
    if not is_logged and record.span is None:
        return
    line = _line(request.method, route, record, status)
    if is_logged:
        log.log(level, line)
    if record.span is not None:
        end_span(record.span, line)


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
