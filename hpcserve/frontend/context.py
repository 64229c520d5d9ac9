"""What every handler needs: the parts of this frontend, and the record of the request at hand."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from aiohttp import web

from hpcserve.config.models import Config
from hpcserve.frontend.access.tenants import ANYBODY, Tenant
from hpcserve.frontend.backend import Backend
from hpcserve.frontend.prompts.tokenizer import Tokenizer
from hpcserve.jobs import JobStore
from hpcserve.observability.metrics import ServiceMetrics
from hpcserve.observability.tracing import OpenSpan, Tracer


@dataclass(frozen=True)
class Frontend:
    """The parts of one frontend process."""

    config: Config
    backend: Backend
    tokenizer: Tokenizer
    metrics: ServiceMetrics
    tracer: Tracer | None = None  # None: requests are not traced
    jobs: JobStore | None = None  # None: there are no files and batches
    created_at: int = field(default_factory=lambda: int(time.time()))  # Unix time


@dataclass
class RequestRecord:
    """What is known of one HTTP request, for its log line and its headers."""

    request_id: str  # the client's x-request-id, or `own_id`
    own_id: str  # never used twice: ids of what comes of the request end in it
    trace_id: str | None = None  # of the W3C trace that it belongs to
    span: OpenSpan | None = None  # None: it is not traced here
    tenant: Tenant = ANYBODY
    started_at: float = field(default_factory=time.perf_counter)
    job_id: str | None = None  # as in the response; the ids that head and workers log begin with it
    model: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    ttft_s: float | None = None
    finish_reason: str | None = None  # of its sequences, each once
    error: str | None = None  # also what ended a stream whose status was 200


FRONTEND = web.AppKey("frontend", Frontend)
RECORD = web.RequestKey("record", RequestRecord)
