"""Faults of one TCP connection of another process: here of a small one that sends back what it gets."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.chaos import sockets
from tests.chaos.sockets import Connection

ECHO = """
import socket, sys
ours = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
while data := ours.recv(1000):
    ours.sendall(data)
"""


@pytest.fixture
def echo() -> Iterator[tuple[socket.socket, Connection]]:
    """Our end of a connection, and the other process's."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        process = subprocess.Popen([sys.executable, "-c", ECHO, str(server.getsockname()[1])])
        try:
            ours, _ = server.accept()
            ours.settimeout(10)
            with ours:
                (connection,) = sockets.connections_between([process.pid], [os.getpid()])
                try:
                    sockets.swallow(connection)
                except OSError as err:
                    pytest.skip(f"may not take another process's socket: {err}")
                sockets.let_through(connection)
                yield ours, connection
        finally:
            process.kill()
            process.wait()


def test_what_is_swallowed_arrives_once_it_is_let_through(echo: tuple[socket.socket, Connection]) -> None:
    ours, connection = echo
    sockets.swallow(connection)
    ours.sendall(b"hello")
    ours.settimeout(0.5)
    with pytest.raises(TimeoutError):
        ours.recv(1)
    sockets.let_through(connection)
    ours.settimeout(20)
    assert ours.recv(5, socket.MSG_WAITALL) == b"hello"


def test_a_connection_that_is_cut_ends_at_both_sides(echo: tuple[socket.socket, Connection]) -> None:
    ours, connection = echo
    ours.sendall(b"hello")
    assert ours.recv(5, socket.MSG_WAITALL) == b"hello"
    sockets.cut(connection)
    assert ours.recv(1) == b""


def test_a_slow_connection_delivers_everything_late(echo: tuple[socket.socket, Connection]) -> None:
    ours, connection = echo
    sockets.pace(connection, 100_000)
    data, began, got = os.urandom(80_000), time.monotonic(), b""
    ours.sendall(data)
    while len(got) < len(data):
        got += ours.recv(len(data))
    assert got == data
    assert time.monotonic() - began > 0.3, "at full speed it is a millisecond"
    sockets.pace(connection, None)


def test_a_socket_that_is_another_one_by_now_is_left_alone(echo: tuple[socket.socket, Connection]) -> None:
    ours, connection = echo
    stale = Connection(connection.pid, connection.fd, connection.local, "0100007F:0001")
    with pytest.raises(OSError, match="another one by now"):
        sockets.swallow(stale)
    ours.sendall(b"hello")
    assert ours.recv(5, socket.MSG_WAITALL) == b"hello"
