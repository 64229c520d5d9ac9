"""An engine that records what requests spent their time on: "kv_transfer", "prefill" and "decode", one after the other.

Only requests with a `traceparent` are looked at; the others go straight to the engine underneath.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

from hpcserve.engine.protocol import AsyncEngine, OnOutput
from hpcserve.engine.push import iterate, run_of
from hpcserve.observability.tracing import Tracer
from hpcserve.types import EngineOutput, EngineRequest, KvHandle


class TracedEngine:
    """Records spans of an engine that does the work. It starts and stops the engine, but owns no tracer."""

    def __init__(self, engine: AsyncEngine, tracer: Tracer) -> None:
        self._engine = engine
        self._tracer = tracer
        self._run = run_of(engine)
        self.start = engine.start
        self.abort = engine.abort
        self.load = engine.load
        self.stop = engine.stop

    def generate(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        """Yield what the engine yields."""
        return self._engine.generate(request) if request.traceparent is None else iterate(self.run, request)

    async def run(self, request: EngineRequest, on_output: OnOutput) -> None:
        """Hand over what the engine gives out."""
        if request.traceparent is None:
            await self._run(request, on_output)
            return
        times = _Times(request)

        def take(output: EngineOutput) -> None:
            times.take(output)
            on_output(output)

        try:
            await self._run(request, take)
        finally:
            for span in times.spans():
                self._tracer.record(
                    span.name,
                    request.traceparent,
                    span.began_ns,
                    span.attributes,
                    ended_ns=span.ended_ns,
                    error=span.error,
                )


@dataclass(frozen=True)
class _Span:
    name: str
    began_ns: int
    ended_ns: int
    attributes: dict[str, str | int]
    error: str | None = None


@dataclass
class _Times:
    """When one request came and got its first output, and what it was told; times are nanoseconds since 1970."""

    request: EngineRequest
    came_ns: int = field(default_factory=time.time_ns)
    first_ns: int = 0  # 0: there was none
    first: EngineOutput | None = None
    last: EngineOutput | None = None
    num_generated: int = 0

    def take(self, output: EngineOutput) -> None:
        if self.first is None:
            self.first, self.first_ns = output, time.time_ns()
        self.last = output
        self.num_generated += len(output.token_ids)

    def spans(self) -> Iterator[_Span]:
        """Yield what the time went on, now that the request is over."""
        now_ns, error = time.time_ns(), self._error()
        computes_from_ns = self.came_ns
        if self.request.kv is not None and self.first is not None:
            transfer = self._transfer(self.request.kv, self.first)
            yield transfer
            computes_from_ns = transfer.ended_ns
        has_prompt = self._pulled_whole_prompt()
        decodes = self.num_generated > 0 and not self.request.prefill_only
        if not has_prompt:
            ended_ns = self.first_ns if decodes else now_ns
            yield _Span("prefill", computes_from_ns, ended_ns, self._attributes(), None if decodes else error)
            computes_from_ns = ended_ns
        if decodes:
            counted = {"hpcserve.generated_tokens": self.num_generated}
            yield _Span("decode", computes_from_ns, now_ns, {**self._attributes(), **counted}, error)

    def _transfer(self, handle: KvHandle, first: EngineOutput) -> _Span:
        """Return the span of the pull; where the engine does not tell how long it took it lasts to the first output."""
        took_ns = self.first_ns - self.came_ns
        if first.pull_s is not None:
            took_ns = min(took_ns, int(first.pull_s * 1e9))
        was_there = (first.cached_tokens or 0) >= handle.num_tokens
        attributes: dict[str, str | int] = {
            "hpcserve.request_id": self.request.request_id,
            "hpcserve.transport": handle.transport,
            "hpcserve.source_worker": handle.source,
            "hpcserve.pulled_tokens": first.pulled_tokens,
        }
        error = None if first.pulled_tokens or was_there else "nothing was pulled: the prompt was computed"
        return _Span("kv_transfer", self.came_ns, self.came_ns + (took_ns if error is None else 0), attributes, error)

    def _pulled_whole_prompt(self) -> bool:
        handle, first = self.request.kv, self.first
        if handle is None or first is None or handle.num_tokens < len(self.request.token_ids):
            return False
        return first.pulled_tokens > 0 or (first.cached_tokens or 0) >= handle.num_tokens

    def _attributes(self) -> dict[str, str | int]:
        attributes: dict[str, str | int] = {
            "hpcserve.request_id": self.request.request_id,
            "hpcserve.prompt_tokens": len(self.request.token_ids),
        }
        if self.first is not None and self.first.cached_tokens is not None:
            attributes["hpcserve.cached_tokens"] = self.first.cached_tokens
        if self.last is not None and self.last.finish_reason is not None:
            attributes["hpcserve.finish_reason"] = self.last.finish_reason
        if self.request.num_resumed:
            attributes["hpcserve.resumed_tokens"] = self.request.num_resumed
        return attributes

    def _error(self) -> str | None:
        if self.last is None or self.last.finish_reason is None:
            return "the request was given up, or its engine died"
        return self.last.error or ("aborted" if self.last.finish_reason == "abort" else None)
