"""Faults of single TCP connections of other processes, with nothing of theirs changed: Linux 5.6+, and root.

`pidfd_getfd(2)` gives a copy of another process's socket. Shut down, the connection ends at both sides. With a filter
that keeps nothing (`SO_ATTACH_FILTER`) it swallows what arrives, acknowledgements too, as a cut cable does; without it
TCP catches up. With a pace (`SO_MAX_PACING_RATE`) it sends that slowly.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PIDFD_GETFD = 438  # the same number on every architecture that Linux has had since
_SO_ATTACH_FILTER, _SO_DETACH_FILTER, _SO_MAX_PACING_RATE = 26, 27, 47
_RETURN_NOTHING = struct.pack("HBBI", 0x06, 0, 0, 0)  # BPF: RET 0
_ESTABLISHED = "01"
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Connection:
    """One end of an established connection."""

    pid: int
    fd: int
    local: str  # address and port as /proc writes them
    remote: str


def connections_between(clients: Iterable[int], servers: Iterable[int]) -> list[Connection]:
    """Return the clients' ends of all connections from one of these processes to one of those."""
    theirs = {each.local for pid in servers for each in _connections_of(pid)}
    ours = (each for pid in clients for each in _connections_of(pid))
    return sorted((each for each in ours if each.remote in theirs), key=lambda each: (each.pid, each.fd))


def cut(connection: Connection) -> None:
    """End it, at once and for both."""
    with _copy_of(connection) as copy, suppress(OSError):
        copy.shutdown(socket.SHUT_RDWR)


def swallow(connection: Connection) -> None:
    """Nothing arrives any more, until `let_through`."""
    code = ctypes.create_string_buffer(_RETURN_NOTHING)
    program = struct.pack("HL", 1, ctypes.addressof(code))
    with _copy_of(connection) as copy:
        copy.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def let_through(connection: Connection) -> None:
    """Undo `swallow`; a connection that has ended meanwhile needs none."""
    with suppress(OSError), _copy_of(connection) as copy:
        copy.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


def pace(connection: Connection, bytes_per_s: int | None) -> None:
    """Send no faster than that; None: as fast as can be."""
    rate = 0xFFFFFFFF if bytes_per_s is None else bytes_per_s
    with suppress(OSError), _copy_of(connection) as copy:
        copy.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, struct.pack("I", rate))


def _copy_of(connection: Connection) -> socket.socket:
    """Return a copy of the socket. Raises `OSError` if it is another one by now, or gone."""
    process = os.pidfd_open(connection.pid)
    try:
        fd = _libc.syscall(_PIDFD_GETFD, process, connection.fd, 0)
        if fd < 0:
            raise OSError(ctypes.get_errno(), f"pidfd_getfd of {connection}")
    finally:
        os.close(process)
    copy = socket.socket(fileno=fd)
    if not connection.remote.endswith(f":{_peer_port(copy):04X}"):
        copy.close()
        raise OSError(f"{connection} is another one by now")
    return copy


def _peer_port(copy: socket.socket) -> int:
    return int(copy.getpeername()[1])


def _connections_of(pid: int) -> list[Connection]:
    found = []
    with suppress(OSError):
        inodes = _inodes(pid)
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _ESTABLISHED and fields[9] in inodes:
                    found.append(Connection(pid, inodes[fields[9]], fields[1], fields[2]))
    return found


def _inodes(pid: int) -> dict[str, int]:
    """Return the process's sockets: inode to descriptor."""
    found = {}
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            target = os.readlink(path)
            if target.startswith("socket:["):
                found[target[8:-1]] = int(path.name)
    return found
