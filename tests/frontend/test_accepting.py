"""Connections are taken all at once, whatever else the loop does, and a bad one takes nobody with it."""

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop

from hpcserve.frontend.server import accepting
from hpcserve.frontend.server.accepting import Listener, bind
from tests.certificates import make_certificate

NUM = 300


class Counter:
    """Makes protocols and counts those that are connected."""

    def __init__(self) -> None:
        self.num = 0
        counter = self

        class Protocol(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                counter.num += 1
                transport.close()

        self.factory: Callable[[], asyncio.Protocol] = Protocol

    async def until(self, num: int) -> int:
        """Return the turns of the loop until so many are connected."""
        turns = 0
        async with asyncio.timeout(10):
            while self.num < num:
                await asyncio.sleep(0)
                turns += 1
        return turns


def connect(sock: socket.socket) -> socket.socket:
    return socket.create_connection(sock.getsockname(), timeout=10)


def test_hundreds_who_come_at_once_are_taken_in_a_few_turns_of_uvloop() -> None:
    async def count() -> int:
        [sock] = bind("127.0.0.1", 0, shares_port=False)
        counter = Counter()
        listener = Listener([sock], counter.factory, None, backlog=NUM)
        clients = [connect(sock) for _ in range(NUM)]
        try:
            return await counter.until(NUM)
        finally:
            listener.close()
            for client in clients:
                client.close()

    assert uvloop.run(count()) < NUM / 10


async def test_nobody_is_taken_after_close_and_the_port_is_free() -> None:
    [sock] = bind("127.0.0.1", 0, shares_port=False)
    address = sock.getsockname()
    listener = Listener([sock], Counter().factory, None, backlog=8)
    listener.close()
    listener.close()
    assert listener.sockets == ()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=10)
    for again in bind(*address, shares_port=False):
        again.close()


def test_a_port_that_is_taken_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(OSError, match="in use"):
        bind(*other.getsockname(), shares_port=False)


async def test_a_client_that_fails_at_tls_harms_nobody(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(cert, key)
    [sock] = bind("127.0.0.1", 0, shares_port=False)
    counter = Counter()
    listener = Listener([sock], counter.factory, tls, backlog=8)
    try:
        with connect(sock) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        trusting = ssl.create_default_context(cafile=cert)
        _, writer = await asyncio.open_connection(*sock.getsockname(), ssl=trusting)
        await counter.until(1)
        writer.close()
    finally:
        listener.close()


async def test_without_files_left_it_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accepting, "_PAUSE_S", 0.01)

    class Poor(socket.socket):
        num_refused = 0

        def accept(self) -> tuple[socket.socket, object]:
            if self.num_refused < 2:
                self.num_refused += 1
                raise OSError(errno.EMFILE, "Too many open files")
            return super().accept()

    sock = Poor(socket.AF_INET)
    sock.bind(("127.0.0.1", 0))
    counter = Counter()
    listener = Listener([sock], counter.factory, None, backlog=8)
    try:
        with connect(sock):
            await counter.until(1)
    finally:
        listener.close()
    assert sock.num_refused == 2
