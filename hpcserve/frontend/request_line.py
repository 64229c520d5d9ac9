"""What is logged of one HTTP request, as text or as the fields of a JSON object."""

from __future__ import annotations

from hpcserve.observability.logging import LogEvent


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
