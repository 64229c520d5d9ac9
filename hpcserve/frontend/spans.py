"""The span of one HTTP request, in the words of OpenTelemetry's conventions for HTTP servers and for models."""

from __future__ import annotations

from aiohttp import hdrs, web

from hpcserve.frontend.request_line import RequestLine
from hpcserve.observability.tracing import OpenSpan, Tracer

_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}


def begin_span(tracer: Tracer, request: web.Request) -> OpenSpan | None:
    """Begin the span of a request that has just come; None if it is not traced."""
    attributes = {
        "http.request.method": request.method,
        "url.path": request.path,
        "url.scheme": request.scheme,
        "server.address": request.host,
        "client.address": request.remote or "unix",
        "user_agent.original": request.headers.get(hdrs.USER_AGENT, ""),
    }
    return tracer.begin("frontend", request.headers, attributes)


def end_span(span: OpenSpan, line: RequestLine) -> None:
    """End it with what the request's log line says. A client's own mistake is no error of the span's."""
    failed = line.status >= 500 or (line.status == 200 and line.error is not None)
    attributes: dict[str, str | int | float | list[str] | None] = {
        "http.route": line.route,
        "http.response.status_code": line.status,
        "error.type": str(line.status) if line.status >= 400 else "stream" if failed else None,
        "gen_ai.operation.name": _OPERATIONS.get(line.route),
        "gen_ai.provider.name": "hpcserve",
        "gen_ai.request.model": line.model,
        "gen_ai.response.model": line.model,
        "gen_ai.response.id": line.job_id,
        "gen_ai.response.finish_reasons": line.finish_reason.split(",") if line.finish_reason else None,
        "gen_ai.response.time_to_first_chunk": None if line.ttft_ms is None else line.ttft_ms / 1e3,  # seconds
        "gen_ai.usage.input_tokens": line.prompt_tokens,
        "gen_ai.usage.output_tokens": line.generated_tokens,
        "gen_ai.usage.cache_read.input_tokens": line.cached_tokens,
        "hpcserve.request_id": line.request_id,
        "hpcserve.tenant": line.tenant,
    }
    known = {name: value for name, value in attributes.items() if value is not None}
    span.end(known, error=(line.error or str(line.status)) if failed else None)
