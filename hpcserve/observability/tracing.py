"""Spans of requests, sent to an OpenTelemetry collector over HTTP. Off without an endpoint: then nothing is imported.

Whether a request is traced is decided once, where it comes in: by the caller's W3C `traceparent`, else by chance. From
there on a request that carries a `traceparent` of ours is traced, and others are not. Spans are recorded when they
have ended, but for the one that others belong under; a thread of OpenTelemetry's sends them in batches.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from hpcserve.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

Attributes = Mapping[str, str | int | float | bool | Sequence[str]]

_PACKAGES = ("opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http")
_EXPORT_TIMEOUT_S = 5.0
_CLOSE_TIMEOUT_S = 3.0  # for the spans of the last seconds, when the process ends
_SAME_WARNING_S = 60.0


def check_tracing(endpoint: str | None) -> None:
    """Raise `ConfigError` if spans are to be sent and what sends them is not installed here. Imports nothing."""
    if endpoint is None:
        return
    try:
        for package in _PACKAGES:
            version(package)
    except PackageNotFoundError as err:
        raise ConfigError(
            f"tracing.endpoint is set, but {err.name} is not installed; install it with: pip install "
            "'hpcserve[tracing]', or leave tracing.endpoint out",
            param="tracing.endpoint",
        ) from err


def open_tracer(endpoint: str | None, sample: float, *, namespace: str, instance: str) -> Tracer | None:
    """Return what records spans and sends them to `endpoint`; None without one.

    `sample` is the share of requests to trace that nobody else decided on, `namespace` the deployment, `instance` who
    of it records. Raises `ConfigError` as `check_tracing` does.
    """
    if endpoint is None:
        return None
    check_tracing(endpoint)
    from opentelemetry.exporter.otlp.proto.http import trace_exporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON

    logging.getLogger(trace_exporter.__name__).addFilter(_rarely())
    names = {"service.name": "hpcserve", "service.namespace": namespace, "service.instance.id": instance}
    provider = TracerProvider(ALWAYS_ON, Resource.create(names), shutdown_on_exit=False)
    exporter = trace_exporter.OTLPSpanExporter(endpoint, timeout=_EXPORT_TIMEOUT_S)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracer(provider, sample)


class Tracer:
    """Records spans of one process."""

    def __init__(self, provider: TracerProvider, sample: float) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("hpcserve")
        self._extract = TraceContextTextMapPropagator().extract
        self._sample = sample

    def begin(self, name: str, headers: Mapping[str, str], attributes: Attributes) -> OpenSpan | None:
        """Begin the span of a request that came in with `headers`; None if it is not traced."""
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind, get_current_span

        context = self._extract(headers, Context()) if "traceparent" in headers else Context()
        parent = get_current_span(context).get_span_context()
        if not (parent.trace_flags.sampled if parent.is_valid else random.random() < self._sample):  # noqa: S311
            return None
        return OpenSpan(self._tracer.start_span(name, context, SpanKind.SERVER, attributes))

    def record(
        self,
        name: str,
        traceparent: str,
        began_ns: int,
        attributes: Attributes,
        *,
        ended_ns: int | None = None,
        error: str | None = None,
    ) -> None:
        """Record a span under `traceparent`, one of ours, that took from `began_ns` to `ended_ns`, or until now.

        Times are nanoseconds since 1970, as of `time.time_ns`.
        """
        span = self._tracer.start_span(name, _context_of(traceparent), attributes=attributes, start_time=began_ns)
        if error is not None:
            _fail(span, error)
        span.end(max(began_ns, time.time_ns() if ended_ns is None else ended_ns))

    def close(self) -> None:
        """Send what was recorded, for at most 3 s, and record no more. Blocks."""
        sending = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        sending.start()
        sending.join(_CLOSE_TIMEOUT_S)


class OpenSpan:
    """A span that has not ended yet, which others belong under."""

    def __init__(self, span: Span) -> None:
        self._span = span
        context = span.get_span_context()
        self.trace_id = f"{context.trace_id:032x}"
        self.traceparent = f"00-{self.trace_id}-{context.span_id:016x}-01"

    def end(self, attributes: Attributes, *, error: str | None = None) -> None:
        """End it, with what is known by now."""
        self._span.set_attributes(attributes)
        if error is not None:
            _fail(self._span, error)
        self._span.end()


def _context_of(traceparent: str) -> Context:
    from opentelemetry.context import Context
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

    _, trace_id, span_id, flags = traceparent.split("-")
    parent = SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))
    return set_span_in_context(NonRecordingSpan(parent), Context())


def _fail(span: Span, error: str) -> None:
    from opentelemetry.trace import Status, StatusCode

    span.set_status(Status(StatusCode.ERROR, error))


def _rarely() -> Callable[[logging.LogRecord], bool]:
    """Return a log filter that lets the same message through once a minute: a collector may be away for long."""
    last: dict[str, float] = {}

    def is_new(record: logging.LogRecord) -> bool:
        is_due = record.created - last.get(str(record.msg), 0.0) > _SAME_WARNING_S
        if is_due:
            last[str(record.msg)] = record.created
        return is_due

    return is_new
