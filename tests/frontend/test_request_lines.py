"""The one log line of a request, and the ids by which it is found in all logs."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable

import pytest
from fake_backend import FakeBackend, fail_after, hang_after

from hpcserve.errors import EngineError
from hpcserve.frontend.accounting import RequestLine
from hpcserve.observability.logging import JsonFormatter

TRACE = "0af7651916cd43dd8448eb211c80319c"
BODY = {"model": "mock", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def lines(caplog) -> Callable[[], list[RequestLine]]:
    caplog.set_level("DEBUG", logger="hpcserve")
    return lambda: [each.msg for each in caplog.records if isinstance(each.msg, RequestLine)]


async def send(server, method: str = "POST", path: str = "/v1/chat/completions", body: object = BODY, **headers: str):
    async with server.http.request(method, server.url + path, json=body, headers=headers) as response:
        await response.read()
        return response


async def test_a_line_says_all_that_is_known_of_a_request(server, lines):
    await send(server, **{"x-request-id": "mine"})
    (line,) = lines()
    own_id = line.job_id.removeprefix("chatcmpl-")
    assert line == RequestLine(
        method="POST",
        route="/v1/chat/completions",
        status=200,
        request_id="mine",
        job_id=f"chatcmpl-{own_id}",
        model="mock",
        prompt_tokens=line.prompt_tokens,
        cached_tokens=3,
        generated_tokens=2,
        ttft_ms=line.ttft_ms,
        e2e_ms=line.e2e_ms,
        finish_reason="stop",
    )
    assert 0 < line.ttft_ms <= line.e2e_ms < 10_000
    assert line.prompt_tokens > 0
    told = f"prompt={line.prompt_tokens} cached=3 generated=2 finish=stop ttft={line.ttft_ms:.1f}ms e2e="
    assert str(line).startswith(f"POST /v1/chat/completions 200 id=mine job=chatcmpl-{own_id} model=mock {told}")


async def test_in_json_it_is_an_object_with_these_fields(server, lines):
    await send(server)
    made = logging.LogRecord("hpcserve.frontend.accounting", logging.INFO, __file__, 1, lines()[0], (), None)
    line = json.loads(JsonFormatter().format(made))
    assert line["message"] == "POST /v1/chat/completions 200"
    assert (line["status"], line["cached_tokens"], line["finish_reason"]) == (200, 3, "stop")
    assert "error" not in line


@pytest.mark.parametrize("stream", [False, True])
async def test_the_ids_of_a_request_end_alike_everywhere(server, lines, stream):
    response = await send(server, body={**BODY, "stream": stream, "n": 2})
    own_id = response.headers["x-request-id"]
    assert [each.request_id for each in server.backend.requests] == [f"chatcmpl-{own_id}-0", f"chatcmpl-{own_id}-1"]
    (line,) = lines()
    assert (line.request_id, line.job_id) == (own_id, f"chatcmpl-{own_id}")
    await send(server, path="/v1/completions", body={"model": "mock", "prompt": "a"}, **{"x-request-id": "mine"})
    assert server.backend.requests[-1].request_id.startswith(lines()[-1].job_id)


async def test_ids_are_told_apart_even_if_the_client_sends_one_twice(server):
    for _ in range(2):
        await send(server, **{"x-request-id": "mine"})
    first, second = (each.request_id for each in server.backend.requests)
    assert first != second


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "route"),
    [
        ("POST", "/v1/chat/completions", BODY, 200, "/v1/chat/completions"),
        ("POST", "/v1/chat/completions", {**BODY, "stream": True}, 200, "/v1/chat/completions"),
        ("POST", "/v1/completions", {"model": "mock"}, 400, "/v1/completions"),
        ("POST", "/v1/messages", {"model": "mock"}, 400, "/v1/messages"),
        ("POST", "/v1/nothing", BODY, 404, "unknown"),
        ("GET", "/v1/completions", None, 405, "unknown"),
        ("POST", "/v1/completions", {"model": "mock", "prompt": "x" * 200_000}, 413, "/v1/completions"),
        ("GET", "/live", None, 200, "/live"),
        ("GET", "/v1/models/none", None, 404, "/v1/models/{id}"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_whatever_the_answer_it_has_an_id_which_is_in_the_log(
    make_server, lines, method, path, body, status, route
):
    server = await make_server(max_body_mb=0.1)
    for given in ({}, {"x-request-id": "mine"}):
        response = await send(server, method, path, body, **given)
        assert response.status == status
        line = lines()[-1]
        assert (line.status, line.route) == (status, route)
        assert line.request_id == response.headers["x-request-id"] == given.get("x-request-id", line.request_id)
        assert (line.error is None) == (status < 400)


async def test_a_body_that_is_refused_before_it_is_sent_is_accounted_too(make_server, lines):
    server = await make_server(max_body_mb=0.001)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n"
    writer.write(f"{head}Expect: 100-continue\r\nx-request-id: mine\r\n\r\n".encode())
    answer = await reader.readuntil(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"x-request-id: mine" in answer
    assert [(each.status, each.request_id) for each in lines()] == [(413, "mine")]
    assert server.metrics.requests["/v1/completions", 413] == 1
    writer.close()
    await writer.wait_closed()


async def test_an_internal_error_has_the_id_in_answer_log_and_header(make_server, lines, caplog):
    server = await make_server(FakeBackend(fail_after([], ZeroDivisionError("oops"))))
    response = await send(server, **{"x-request-id": "mine"})
    assert response.status == 500
    assert "mine" in await response.text()
    assert lines()[-1].request_id == response.headers["x-request-id"] == "mine"
    assert "ZeroDivisionError" in caplog.text


async def test_a_stream_that_fails_says_why_in_its_line(make_server, lines):
    server = await make_server(FakeBackend(fail_after(["a"], EngineError("no\nmemory"))))
    await send(server, body={**BODY, "stream": True})
    (line,) = lines()
    assert (line.status, line.error, line.generated_tokens, line.finish_reason) == (200, "no\nmemory", 1, "abort")
    assert str(line).endswith("error=no memory")


async def test_a_client_that_hangs_up_leaves_a_line(make_server, lines):
    server = await make_server(FakeBackend(hang_after([])))
    pending = asyncio.ensure_future(send(server, **{"x-request-id": "mine"}))
    await server.backend.until(lambda: server.backend.running == 1)
    pending.cancel()
    await server.backend.until(lambda: bool(lines()))
    (line,) = lines()
    assert (line.status, line.request_id, line.finish_reason) == (499, "mine", "abort")
    assert server.backend.aborted == [f"{line.job_id}-0"]


async def test_long_errors_are_cut_in_the_log(server, lines):
    await send(server, body={**BODY, "model": "m" * 5000})
    assert 100 < len(lines()[0].error) <= 300


@pytest.mark.parametrize(
    ("given", "trace_id"),
    [
        (f"00-{TRACE}-b7ad6b7169203331-01", TRACE),
        (f"cc-{TRACE}-b7ad6b7169203331-01-what-comes", TRACE),
        (f"ff-{TRACE}-b7ad6b7169203331-01", None),
        (f"00-{'0' * 32}-b7ad6b7169203331-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-b7ad6b7169203331-01", None),
        ("nonsense", None),
    ],
)
async def test_the_trace_of_the_caller_is_in_the_line(server, lines, given, trace_id):
    await send(server, traceparent=given)
    (line,) = lines()
    assert line.trace_id == trace_id
    assert (f"trace={TRACE}" in str(line)) == (trace_id is not None)
