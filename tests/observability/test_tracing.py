"""Spans on their way to a collector: who decides, what they are, and what happens when nobody takes them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from importlib.metadata import PackageNotFoundError

import pytest

from hpcserve.errors import ConfigError
from hpcserve.observability import tracing
from hpcserve.observability.tracing import Tracer, check_tracing, open_tracer
from tests.otlp_receiver import Receiver, receiving

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
NOT_SAMPLED = {"traceparent": f"00-{TRACE}-{CALLER}-00"}
MakeTracer = Callable[[float], Tracer]


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver


@pytest.fixture
async def make(receiver: Receiver) -> AsyncIterator[MakeTracer]:
    made: list[Tracer] = []

    def make(sample: float) -> Tracer:
        tracer = open_tracer(receiver.url, sample, namespace="demo", instance="decode-0-a")
        assert tracer is not None
        made.append(tracer)
        return tracer

    yield make
    for tracer in made:  # twice does no harm
        await asyncio.to_thread(tracer.close)


async def test_spans_arrive_with_parents_times_and_who_recorded_them(receiver, make):
    tracer = make(1.0)
    request = tracer.begin("frontend", {}, {"url.path": "/v1"})
    tracer.record("decode", request.traceparent, 1_000_000_000, {"n": 3}, ended_ns=3_500_000_000, error="broken")
    request.end({"http.response.status_code": 200})
    await asyncio.to_thread(tracer.close)
    frontend, decode = receiver.one("frontend"), receiver.one("decode")
    assert (frontend.parent_id, frontend.kind, frontend.failure) == ("", 2, None)
    assert frontend.trace_id == request.trace_id == decode.trace_id
    assert frontend.attributes == {"url.path": "/v1", "http.response.status_code": 200}
    assert (decode.parent_id, decode.seconds, decode.failure) == (frontend.span_id, 2.5, "broken")
    assert decode.attributes == {"n": 3}
    names = {name: decode.resource[f"service.{name}"] for name in ("name", "namespace", "instance.id")}
    assert names == {"name": "hpcserve", "namespace": "demo", "instance.id": "decode-0-a"}


async def test_the_span_of_a_caller_that_traces_is_the_parent(receiver, make):
    tracer = make(0.0)
    span = tracer.begin("frontend", SAMPLED, {})
    span.end({})
    await asyncio.to_thread(tracer.close)
    assert (receiver.one("frontend").trace_id, receiver.one("frontend").parent_id) == (TRACE, CALLER)


@pytest.mark.parametrize("headers", [{}, NOT_SAMPLED, {"traceparent": "nonsense"}], ids=str)
async def test_the_caller_decides_and_else_the_share(make, headers):
    is_root = "00-" not in headers.get("traceparent", "")
    assert make(0.0).begin("frontend", headers, {}) is None
    assert (make(1.0).begin("frontend", headers, {}) is not None) == is_root
    tenth = make(0.1)
    num_traced = sum(tenth.begin("frontend", headers, {}) is not None for _ in range(2000))
    assert (100 < num_traced < 320) if is_root else num_traced == 0


async def test_no_span_ends_before_it_begins(receiver, make):
    tracer = make(1.0)
    tracer.record("decode", SAMPLED["traceparent"], time.time_ns() + 10**9, {})
    await asyncio.to_thread(tracer.close)
    assert receiver.one("decode").seconds == 0


async def test_a_collector_that_refuses_is_warned_about_once_a_minute(receiver, make, caplog):
    receiver.status = 400
    tracer = make(1.0)
    for _ in range(1100):  # more than two batches
        tracer.begin("frontend", {}, {}).end({})
    await asyncio.to_thread(tracer.close)
    assert receiver.num_posts >= 2
    failures = [record for record in caplog.records if "opentelemetry" in record.name]
    assert len(failures) == 1
    assert "400" in failures[0].getMessage()


def test_closing_does_not_wait_for_a_collector_that_is_not_there(monkeypatch, caplog):
    monkeypatch.setattr(tracing, "_CLOSE_TIMEOUT_S", 0.3)
    tracer = open_tracer("http://127.0.0.1:9/v1/traces", 1.0, namespace="demo", instance="x")
    tracer.begin("frontend", {}, {}).end({})
    began = time.monotonic()
    tracer.close()
    assert time.monotonic() - began < 2


def test_without_an_endpoint_there_is_no_tracer_and_nothing_is_imported():
    assert open_tracer(None, 1.0, namespace="demo", instance="x") is None
    code = (
        "import sys, hpcserve.serve.frontend, hpcserve.serve.start, hpcserve.agent.node\n"
        "from hpcserve.observability.tracing import check_tracing; check_tracing('http://x')\n"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=50, check=False).returncode == 0


def test_what_is_missing_is_an_error_that_says_how_to_install_it(monkeypatch):
    def missing(package: str) -> str:
        raise PackageNotFoundError(package)

    check_tracing("http://localhost:4318/v1/traces")
    monkeypatch.setattr(tracing, "version", missing)
    check_tracing(None)
    with pytest.raises(ConfigError, match=r"opentelemetry-sdk is not installed.*hpcserve\[tracing\]") as caught:
        check_tracing("http://localhost:4318/v1/traces")
    assert caught.value.param == "tracing.endpoint"
