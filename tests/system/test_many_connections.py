"""Thousands of clients of one deployment with mock engines: idle ones, streaming ones, and ones that vanish."""

from __future__ import annotations

import asyncio
import json
import resource
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from urllib.parse import urlsplit

import pytest

from tests.system.chats import metric, session_for
from tests.system.conftest import Deployment

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]

IDLE, STREAMING, VANISHING = 5000, 1024, 1000
AT_ONCE = 200  # connections that are being opened; the listener's backlog is not what is tested

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextmanager
def few_open_files(number: int = 1024) -> Iterator[None]:
    """Start processes as a login node does: with a low soft limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@asynccontextmanager
async def connected(deployment: Deployment, number: int) -> AsyncIterator[list[Connection]]:
    url = urlsplit(deployment.endpoint)
    opening = asyncio.Semaphore(AT_ONCE)

    async def connect() -> Connection:
        async with opening:
            return await asyncio.open_connection(url.hostname, url.port)

    connections = await asyncio.gather(*(connect() for _ in range(number)))
    try:
        yield connections
    finally:
        for _, writer in connections:
            writer.close()


def chat(deployment: Deployment, number: int, max_tokens: int) -> bytes:
    body = json.dumps(
        {
            "model": "mock",
            "messages": [{"role": "user", "content": f"client {number} says hello"}],
            "max_tokens": max_tokens,
            "ignore_eos": True,
            "stream": True,
        }
    ).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {deployment.key}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def stream(deployment: Deployment, connection: Connection, number: int, max_tokens: int) -> int:
    """Stream a chat to its end; return its chunks with text."""
    reader, writer = connection
    writer.write(chat(deployment, number, max_tokens))
    reply = await reader.readuntil(b"\r\n0\r\n\r\n")
    assert reply.startswith(b"HTTP/1.1 200"), reply[:300]
    assert b"data: [DONE]" in reply
    return reply.count(b'"delta":{"content"')


async def first_delta(reader: asyncio.StreamReader) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    await reader.readuntil(b'"delta":{"content"')


async def num_running(deployment: Deployment) -> float:
    async with session_for(deployment.endpoint, deployment.key) as session:
        return await metric(session, "hpcserve_worker_num_requests_running")


def rss_mb(pid: int) -> float:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6


async def test_thousands_of_idle_connections_leave_room_for_a_thousand_streams(
    deploy: Callable[..., Deployment],
) -> None:
    with few_open_files():
        deployment = deploy("--cluster", "local", "--engine", "mock", "--nodes", "2", "--set", "security.auth=on")
    pid = deployment.status()["frontend_pid"]
    before = rss_mb(pid)
    async with connected(deployment, IDLE):
        idle = rss_mb(pid)
        async with connected(deployment, STREAMING) as connections:
            chunks = await asyncio.gather(
                *(stream(deployment, connection, number, 16) for number, connection in enumerate(connections))
            )
    print(f"{IDLE} idle connections take {idle - before:.0f} MB")
    assert set(chunks) == {16}
    assert idle - before < 100


async def test_clients_that_vanish_leave_nothing_running(deploy: Callable[..., Deployment]) -> None:
    flags = ("--cluster", "local", "--engine", "mock", "--nodes", "4", "--set", "security.auth=on")
    deployment = deploy(*flags, "--set", "engine.mock.speedup=0.5", "--set", f"engine.mock.max_num_seqs={VANISHING}")
    async with connected(deployment, VANISHING) as connections:
        for number, (_, writer) in enumerate(connections):
            writer.write(chat(deployment, number, 4000))
        await asyncio.gather(*(first_delta(reader) for reader, _ in connections))
        for _, writer in connections:
            writer.transport.abort()
        assert await num_running(deployment) > 0
    vanished_at = time.monotonic()
    while await num_running(deployment):
        assert time.monotonic() - vanished_at < 20
        await asyncio.sleep(0.1)
    print(f"nothing ran {time.monotonic() - vanished_at:.1f} s after the last of {VANISHING} clients had vanished")
