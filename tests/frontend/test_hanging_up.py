"""Clients that leave or stop reading. Raw sockets, because HTTP clients are too polite."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest
import uvloop
from fake_backend import FakeBackend, flood, hang_after, speak

from hpcserve.frontend import sse
from hpcserve.types import EngineOutput


async def _send(port: int, body: dict) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    _write_request(writer, body)
    return reader, writer


def _write_request(writer: asyncio.StreamWriter, body: dict, version: str = "1.1") -> None:
    content = json.dumps({"model": "mock", "prompt": "hi", **body}).encode()
    head = f"POST /v1/completions HTTP/{version}\r\nHost: x\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()


async def test_the_tests_run_on_the_event_loop_of_production():
    assert isinstance(asyncio.get_running_loop(), uvloop.Loop)


@pytest.mark.parametrize("num_choices", [1, 3])
async def test_hanging_up_mid_stream_aborts_the_request_in_the_engine(make_server, num_choices):
    server = await make_server(FakeBackend(hang_after(["one"])))
    reader, writer = await _send(server.port, {"stream": True, "n": num_choices})
    await reader.readuntil(b'"text":"one"')
    await _close(writer)
    await server.backend.until(lambda: len(server.backend.aborted) == num_choices)
    assert server.backend.running == 0
    assert server.metrics.inflight == 0
    assert server.metrics.disconnects == 1


@pytest.mark.parametrize("body", [{}, {"stream": True}, {"n": 2}])
async def test_hanging_up_before_the_first_token_aborts_the_request(make_server, body):
    server = await make_server(FakeBackend(hang_after([])))
    _, writer = await _send(server.port, body)
    await server.backend.until(lambda: server.backend.running == body.get("n", 1))
    await _close(writer)
    await server.backend.until(lambda: server.backend.running == 0)
    assert len(server.backend.aborted) == body.get("n", 1)
    assert server.metrics.queued == 0


async def test_a_connection_that_is_reset_aborts_the_request(make_server):
    server = await make_server(FakeBackend(flood("x" * 100)))
    reader, writer = await _send(server.port, {"stream": True})
    await reader.readuntil(b"xxx")
    linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    await _close(writer)
    await server.backend.until(lambda: len(server.backend.aborted) == 1)


async def test_a_client_that_does_not_read_is_dropped_and_its_request_aborted(make_server, monkeypatch, caplog):
    server = await make_server(FakeBackend(flood("x" * 20_000)))
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", server.port))
    _, writer = await asyncio.open_connection(sock=sock, limit=1)
    writer.transport.pause_reading()
    _write_request(writer, {"stream": True})
    await server.backend.until(lambda: len(server.backend.aborted) == 1, timeout_s=10)
    assert server.metrics.slow_clients == 1
    assert str(sse.MAX_UNREAD_BYTES) in caplog.text
    await _close(writer)


async def test_a_connection_is_reused_after_a_stream(make_server):
    server = await make_server(FakeBackend(speak(["a", "b"])))
    reader, writer = await _send(server.port, {"stream": True})
    for again in (True, False):
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"Transfer-Encoding: chunked" in head
        events = b""
        while size := int((await reader.readline()).strip(), 16):
            events += await reader.readexactly(size)
            assert await reader.readexactly(2) == b"\r\n"
        assert await reader.readexactly(2) == b"\r\n"
        assert events.endswith(b"data: [DONE]\n\n")
        if again:
            _write_request(writer, {"stream": True})
    await _close(writer)


async def test_pipelined_streams_are_answered_in_order(make_server):
    server = await make_server(FakeBackend(speak(["a", "b"])))
    reader, writer = await _send(server.port, {"stream": True, "prompt": "1", "echo": True})
    _write_request(writer, {"stream": True, "prompt": "2", "echo": True})
    text = await reader.readuntil(b"[DONE]") + await reader.readuntil(b"[DONE]")
    assert text.index(b'"text":"1a"') < text.index(b"[DONE]") < text.index(b'"text":"2a"')
    await _close(writer)


async def test_an_http_1_0_client_gets_the_events_unframed_until_the_end_of_the_connection(make_server):
    server = await make_server(FakeBackend(speak(["a", "b"])))
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    _write_request(writer, {"stream": True}, version="1.0")
    async with asyncio.timeout(5):
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert body.startswith(b"data: {")
    assert body.endswith(b"data: [DONE]\n\n")
    await _close(writer)


async def test_closing_the_site_aborts_what_outlives_the_drain_timeout(make_server, tokenizer):
    from hpcserve.config.models import Config, FrontendConfig
    from hpcserve.frontend.app import make_app
    from hpcserve.frontend.server.site import start_site

    backend = FakeBackend(hang_after(["one"]))
    config = Config(frontend=FrontendConfig(drain_timeout_s=0.05))
    site = await start_site(make_app(config, backend, None, tokenizer), "127.0.0.1", 0)
    reader, writer = await _send(site.port, {"stream": True})
    await reader.readuntil(b'"text":"one"')
    async with asyncio.timeout(5):
        await site.close()
    assert len(backend.aborted) == 1
    await _close(writer)


async def test_a_client_that_is_gone_when_its_stream_ends_is_no_error(make_server, caplog):
    go_on = asyncio.Event()

    async def script(request, on_output):
        on_output(EngineOutput(request_id=request.request_id, token_ids=(1,), text="one"))
        await go_on.wait()
        for text in ("x" * 30_000_000, "two"):  # more than the kernel and we would hold
            on_output(EngineOutput(request_id=request.request_id, token_ids=(1,), text=text))
        on_output(EngineOutput(request_id=request.request_id, token_ids=(1,), finish_reason="stop"))

    server = await make_server(FakeBackend(script))
    reader, writer = await _send(server.port, {"stream": True})
    await reader.readuntil(b'"one"')
    go_on.set()
    await server.backend.until(lambda: server.metrics.disconnects == 1)
    await _close(writer)
    assert server.metrics.slow_clients == 1
    assert server.backend.aborted == []
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
