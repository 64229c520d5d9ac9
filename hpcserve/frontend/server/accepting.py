"""Takes connections off a listening socket, all that wait at once. Knows nothing of HTTP.

uvloop takes one a turn of its loop. While a turn writes to a thousand streams it lasts tens of milliseconds, and a
thousand clients who come at once would wait for half a minute, with their requests sent and unread.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import cast

from aiohttp import web

log = logging.getLogger(__name__)

_AT_ONCE = 256  # so that those who are served go on being served meanwhile
_PAUSE_S = 1.0  # when the system has no more files or memory
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Listener:
    """Serves on sockets that are bound already, and closes them. What aiohttp needs of an `asyncio.AbstractServer`."""

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        factory: Callable[[], asyncio.BaseProtocol],
        tls: ssl.SSLContext | None,
        backlog: int,
    ) -> None:
        """Begin at once. Raises `OSError` where a port turns out to be taken; then all sockets are closed."""
        self._loop = asyncio.get_running_loop()
        self._factory = factory
        self._tls = tls
        self._sockets: tuple[socket.socket, ...] = ()
        self._welcoming: set[asyncio.Task[object]] = set()
        try:
            for sock in sockets:
                sock.listen(backlog)
                sock.setblocking(False)
        except OSError:
            for sock in sockets:
                sock.close()
            raise
        self._sockets = tuple(sockets)
        for sock in self._sockets:
            self._loop.add_reader(sock, self._accept, sock)

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """The open ones."""
        return self._sockets

    def close(self) -> None:
        """Take no more connections; those that were taken live on. Safe to call twice."""
        sockets, self._sockets = self._sockets, ()
        for sock in sockets:
            self._loop.remove_reader(sock)
            sock.close()

    def _accept(self, sock: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, _address = sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue
            except OSError as err:
                if err.errno not in _EXHAUSTED:
                    raise
                log.error("cannot take a connection: %s; trying again in %g s", err.strerror, _PAUSE_S)
                self._loop.remove_reader(sock)
                self._loop.call_later(_PAUSE_S, self._resume, sock)
                return
            task = self._loop.create_task(self._welcome(connection))
            self._welcoming.add(task)
            task.add_done_callback(self._welcoming.discard)

    def _resume(self, sock: socket.socket) -> None:
        if sock in self._sockets:
            self._loop.add_reader(sock, self._accept, sock)

    async def _welcome(self, connection: socket.socket) -> None:
        """Hand a connection to its protocol. Who breaks off, or fails at TLS, is nobody's concern."""
        connection.setblocking(False)
        try:
            await self._loop.connect_accepted_socket(self._factory, connection, ssl=self._tls)
        except (OSError, ssl.SSLError) as err:
            log.debug("a connection ended before it began: %s", err)
            connection.close()


class ListeningSite(web.BaseSite):
    """An aiohttp site on sockets that are bound already."""

    def __init__(
        self, runner: web.AppRunner, sockets: Sequence[socket.socket], tls: ssl.SSLContext | None, backlog: int
    ) -> None:
        super().__init__(runner, ssl_context=tls, backlog=backlog)
        self._bound = sockets

    @property
    def name(self) -> str:
        """What aiohttp calls it."""
        return ", ".join(str(sock.getsockname()) for sock in self._bound)

    async def start(self) -> None:
        """Take connections. Raises `OSError`."""
        await super().start()
        server = self._runner.server
        assert server is not None, "the runner is not set up"
        listener = Listener(self._bound, server, self._ssl_context, self._backlog)
        self._server = cast("asyncio.AbstractServer", listener)


def bind(host: str, port: int, *, shares_port: bool) -> list[socket.socket]:
    """Return a socket for each address that `host` stands for. Raises `OSError`; then none is left open."""
    bound: list[socket.socket] = []
    try:
        for family, kind, proto, _, address in dict.fromkeys(
            socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        ):
            sock = socket.socket(family, kind, proto)
            bound.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shares_port:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
    except OSError:
        for sock in bound:
            sock.close()
        raise
    return bound
