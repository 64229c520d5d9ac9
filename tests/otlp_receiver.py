"""An OpenTelemetry collector for tests: takes spans over OTLP/HTTP, decodes them, keeps them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


@dataclass(frozen=True)
class Got:
    """One span as it arrived."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str  # "": it is a root
    began_ns: int
    ended_ns: int
    kind: int  # 2: server
    failure: str | None
    attributes: dict[str, Any]
    resource: dict[str, Any]

    @property
    def seconds(self) -> float:
        return (self.ended_ns - self.began_ns) / 1e9


@dataclass
class Receiver:
    url: str = ""
    spans: list[Got] = field(default_factory=list)
    num_posts: int = 0
    status: int = 200

    async def until(self, is_there: Callable[[list[Got]], bool], timeout_s: float = 20.0) -> list[Got]:
        async with asyncio.timeout(timeout_s):
            while not is_there(self.spans):
                await asyncio.sleep(0.02)
        return self.spans

    def named(self, name: str) -> list[Got]:
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> Got:
        (span,) = self.named(name)
        return span

    async def take(self, request: web.Request) -> web.Response:
        assert request.content_type == "application/x-protobuf"
        self.num_posts += 1
        if self.status == 200:
            self.spans += _decode(await request.read())
        return web.Response(body=ExportTraceServiceResponse().SerializeToString(), status=self.status)


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/v1/traces", receiver.take)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1/traces"
        yield receiver
    finally:
        await runner.cleanup()


def _decode(body: bytes) -> list[Got]:
    message = ExportTraceServiceRequest.FromString(body)
    return [
        Got(
            name=span.name,
            trace_id=span.trace_id.hex(),
            span_id=span.span_id.hex(),
            parent_id=span.parent_span_id.hex(),
            began_ns=span.start_time_unix_nano,
            ended_ns=span.end_time_unix_nano,
            kind=span.kind,
            failure=span.status.message if span.status.code == 2 else None,
            attributes=_values(span.attributes),
            resource=_values(of.resource.attributes),
        )
        for of in message.resource_spans
        for scope in of.scope_spans
        for span in scope.spans
    ]


def _values(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind)
