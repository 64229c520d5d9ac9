"""Clients that send too slowly, read too slowly, send too much, or close one half of their connection."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, suppress

import pytest
from aiohttp import web
from fake_backend import FakeBackend, flood, hang_after, speak

from hpcserve.frontend import body, sse
from hpcserve.frontend.probes import live
from hpcserve.frontend.server import connections, site
from hpcserve.observability.metrics import ServiceMetrics

HEAD = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
SOON_S = 5.0


@pytest.fixture(autouse=True)
def no_error_is_logged(caplog) -> Iterator[None]:
    yield
    assert [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR] == []


@asynccontextmanager
async def connection(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


def request(**fields: object) -> bytes:
    content = json.dumps({"model": "mock", "prompt": "hi", **fields})
    return f"{HEAD}Content-Length: {len(content)}\r\n\r\n{content}".encode()


def deaf_socket() -> socket.socket:
    """A socket whose kernel keeps little of what is not read."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    return sock


async def ask_and_never_read(port: int, sent: bytes) -> socket.socket:
    loop, sock = asyncio.get_running_loop(), deaf_socket()
    await loop.sock_connect(sock, ("127.0.0.1", port))
    await loop.sock_sendall(sock, sent)
    return sock


async def drip(writer: asyncio.StreamWriter, piece: bytes, every_s: float) -> None:
    """Send one piece after the other until the server has had enough."""
    try:
        while not writer.is_closing():
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(every_s)
    except ConnectionError:
        return


@pytest.mark.parametrize("before", [b"", b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n"], ids=["first", "second"])
async def test_headers_that_drip_in_are_not_waited_for(make_server, monkeypatch, before):
    monkeypatch.setattr(site, "_KEEPALIVE_TIMEOUT_S", 0.3)
    server = await make_server()
    async with connection(server.port) as (reader, writer):
        writer.write(before)
        if before:
            await reader.readuntil(b'"ok"}')
        writer.write(b"GET /live HTTP/1.1\r\nHost: x\r\n")
        dripping = asyncio.create_task(drip(writer, b"X-A: b\r\n", 0.02))
        async with asyncio.timeout(SOON_S):
            with suppress(ConnectionResetError):  # closed, while a piece was under way
                assert await reader.read() == b""
        dripping.cancel()


async def test_a_body_that_drips_in_is_not_waited_for(make_server, monkeypatch):
    monkeypatch.setattr(body, "_READ_TIMEOUT_S", 0.2)
    monkeypatch.setattr(site, "_LINGERING_TIME_S", 0.1)
    server = await make_server()
    async with connection(server.port) as (reader, writer):
        writer.write(f"{HEAD}Content-Length: 100000\r\n\r\n".encode())
        dripping = asyncio.create_task(drip(writer, b" ", 0.02))
        async with asyncio.timeout(SOON_S):
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 408 ")
            with suppress(ConnectionResetError):
                assert b"request_timeout" in await reader.read()
        dripping.cancel()
    assert server.backend.requests == []


async def test_a_body_in_chunks_without_end_is_cut_off_at_the_limit(make_server, monkeypatch):
    monkeypatch.setattr(site, "_LINGERING_TIME_S", 0.1)
    server = await make_server(max_body_mb=0.1)
    async with connection(server.port) as (reader, writer):
        writer.write(f"{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode())
        dripping = asyncio.create_task(drip(writer, b"4000\r\n" + b" " * 0x4000 + b"\r\n", 0))
        async with asyncio.timeout(SOON_S):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 413 ")
            await dripping  # ends when the server closes


async def test_a_client_that_closes_its_half_before_the_answer_is_treated_as_gone(make_server):
    server = await make_server(FakeBackend(hang_after([])))
    async with connection(server.port) as (reader, writer):
        writer.write(request())
        await server.backend.until(lambda: server.backend.running == 1)
        writer.write_eof()
        await server.backend.until(lambda: len(server.backend.aborted) == 1)
        async with asyncio.timeout(SOON_S):
            assert await reader.read() == b""
    assert server.metrics.disconnects == 1


@pytest.mark.parametrize("sent", [b"", b"GET /li", HEAD.encode(), f"{HEAD}Content-Length: 50\r\n\r\n{{".encode()])
async def test_a_client_that_closes_its_half_in_the_middle_of_a_request_is_let_go(make_server, sent):
    server = await make_server()
    async with connection(server.port) as (reader, writer):
        writer.write(sent)
        writer.write_eof()
        async with asyncio.timeout(SOON_S):
            assert b"200" not in await reader.read()
    assert server.backend.requests == []


async def test_a_client_that_reads_nothing_of_a_long_answer_is_dropped(make_server, monkeypatch, caplog):
    monkeypatch.setattr(connections, "_STALL_TIMEOUT_S", 0.1)
    server = await make_server(FakeBackend(speak(["x" * 30_000_000])))
    with closing(await ask_and_never_read(server.port, request())):
        await server.backend.until(lambda: server.metrics.slow_clients == 1, timeout_s=SOON_S)
    assert "read nothing of" in caplog.text


class ShrinkingTransport(asyncio.Transport):
    """A transport whose client has read a bit whenever somebody looks, until it reads no more."""

    def __init__(self, each_unread: list[int]) -> None:
        super().__init__()
        self.each_unread = each_unread
        self.aborted = asyncio.Event()

    def get_write_buffer_size(self) -> int:
        return self.each_unread.pop(0)

    def abort(self) -> None:
        self.aborted.set()


async def test_a_client_that_reads_slowly_is_kept_until_it_reads_no_more(monkeypatch):
    monkeypatch.setattr(connections, "_STALL_TIMEOUT_S", 0.01)
    metrics = ServiceMetrics(FakeBackend().status)
    connection = connections.Connection(web.Server(live), metrics, {})
    connection.transport = transport = ShrinkingTransport([9, 8, 8, 5, 5, 5])
    connection.pause_writing()
    async with asyncio.timeout(SOON_S):
        await transport.aborted.wait()
    assert transport.each_unread == []  # it went on for as long as there was less
    assert metrics.slow_clients == 1


async def test_a_client_that_has_read_it_all_is_watched_no_more(monkeypatch):
    monkeypatch.setattr(connections, "_STALL_TIMEOUT_S", 0.01)
    connection = connections.Connection(web.Server(live), ServiceMetrics(FakeBackend().status), {})
    connection.transport = transport = ShrinkingTransport([9, 9])
    connection.pause_writing()
    connection.resume_writing()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await transport.aborted.wait()


async def test_what_is_kept_for_clients_that_do_not_read_is_bounded(make_server):
    num_clients = 20
    server = await make_server(FakeBackend(flood("x" * 5_000)))
    with ExitStack() as stack:
        tracemalloc.start()
        stack.callback(tracemalloc.stop)
        for _ in range(num_clients):
            stack.enter_context(closing(await ask_and_never_read(server.port, request(stream=True))))
        await server.backend.until(lambda: len(server.backend.aborted) == num_clients, timeout_s=20)
        _, peak = tracemalloc.get_traced_memory()
    assert server.metrics.slow_clients == num_clients
    assert peak < num_clients * (sse.MAX_UNREAD_BYTES + 200_000)
    assert server.backend.running == 0
