"""Where the frontend listens: on a TCP port, with TLS or without, on a Unix socket, or on both. Knows no routes."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from hpcserve.errors import StartError
from hpcserve.frontend.context import FRONTEND
from hpcserve.frontend.server.accepting import ListeningSite, bind
from hpcserve.frontend.server.connections import Runner
from hpcserve.frontend.server.unix_socket import make_room

_BACKLOG = 4096
_KEEPALIVE_TIMEOUT_S = 75.0  # from one answer to the whole head of the next request, and to that of the first
_LINGERING_TIME_S = 2.0  # how long the rest of a refused body is read, so that the client sees the answer


@dataclass(frozen=True)
class Site:
    """A running HTTP server."""

    host: str | None  # None: no TCP
    port: int | None
    _runner: web.AppRunner
    _unix_socket: UnixFile | None = None

    async def close(self) -> None:
        """Stop accepting, let requests end for as long as `frontend.drain_timeout_s`, then abort them."""
        if self._unix_socket is not None:
            self._unix_socket.remove()
        await self._runner.cleanup()


@dataclass(frozen=True)
class UnixFile:
    """The file of a socket that this process has bound."""

    path: Path
    inode: int

    def remove(self) -> None:
        """Remove it, unless it is another's by now."""
        try:
            if self.path.lstat().st_ino == self.inode:
                self.path.unlink()
        except FileNotFoundError:
            return


async def start_site(
    app: web.Application,
    host: str | None,
    port: int = 0,
    sock: socket.socket | None = None,
    *,
    tls: ssl.SSLContext | None = None,
    unix_socket: Path | None = None,
    shares_port: bool = False,
) -> Site:
    """Listen on `host`:`port` (0: any free port), or on `sock`, and on a Unix socket where one is named.

    Without a `host` there is no TCP. With `shares_port` other processes of this user may listen on the same port, and
    the system gives each connection to one of them. Raises `StartError` when the port is taken, and as `make_room`.
    """
    options = {
        "access_log": None,  # the guard logs
        "keepalive_timeout": _KEEPALIVE_TIMEOUT_S,
        "lingering_time": _LINGERING_TIME_S,
    }
    runner = Runner(app, shutdown_timeout_s=app[FRONTEND].config.frontend.drain_timeout_s, options=options)
    await runner.setup()
    try:
        bound = None if host is None else await _listen(runner, host, port, sock, tls, shares_port=shares_port)
        file = None if unix_socket is None else await _listen_unix(runner, unix_socket)
    except BaseException:
        await runner.cleanup()
        raise
    return Site(host, bound, runner, file)


async def _listen(
    runner: web.AppRunner,
    host: str,
    port: int,
    sock: socket.socket | None,
    tls: ssl.SSLContext | None,
    *,
    shares_port: bool,
) -> int:
    try:
        bound = [sock] if sock is not None else await asyncio.to_thread(bind, host, port, shares_port=shares_port)
        await ListeningSite(runner, bound, tls, _BACKLOG).start()
    except OSError as err:
        message = f"cannot listen on {host}:{port}: {err.strerror or err}; choose another with --port"
        raise StartError(message, param="frontend.port") from err
    return int(runner.addresses[0][1])


async def _listen_unix(runner: web.AppRunner, path: Path) -> UnixFile:
    make_room(path)
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.bind(str(path))
        await ListeningSite(runner, [sock], None, _BACKLOG).start()
        os.chmod(path, 0o600)  # until here its directory kept others out
        return UnixFile(path, os.lstat(path).st_ino)
    except OSError as err:
        sock.close()
        message = f"cannot listen on {path}: {err.strerror or err}; choose another with --unix-socket"
        raise StartError(message, param="frontend.unix_socket") from err
