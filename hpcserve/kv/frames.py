"""Messages over a Unix socket that never blocks: a length, then the bytes. For two processes of one user."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress

from hpcserve.errors import KVError

_LENGTH = struct.Struct("<I")
_READ_BYTES = 1 << 20
_LONGEST = 256 << 20


class Frames:
    """One end of a connection."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._out = bytearray()
        self._in = bytearray()

    def send(self, frame: bytes) -> None:
        """Send soon. Raises `KVError` when the other process is gone."""
        self._out += _LENGTH.pack(len(frame)) + frame
        self.flush()

    def flush(self) -> bool:
        """Write what the socket takes; whether it took any. Raises `KVError`."""
        if not self._out:
            return False
        try:
            del self._out[: self._socket.send(self._out)]
        except BlockingIOError:
            return False
        except OSError as err:
            raise KVError(f"the process at the other end is gone ({err.strerror})") from err
        return True

    def receive(self) -> list[bytes]:
        """Return the messages that are here. Raises `KVError` when the other process is gone and all is read."""
        self.flush()
        is_over = self._read()
        frames = []
        while len(self._in) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._in)
            if length > _LONGEST:
                raise KVError(f"a message of {length} bytes: this is not hpcserve at the other end")
            if len(self._in) < _LENGTH.size + length:
                break
            frames.append(bytes(self._in[_LENGTH.size : _LENGTH.size + length]))
            del self._in[: _LENGTH.size + length]
        if is_over and not frames:
            raise KVError("the process at the other end is gone")
        return frames

    def close(self) -> None:
        """Close the connection; what was not sent is lost."""
        with suppress(OSError):
            self._socket.close()

    def _read(self) -> bool:
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            return True
        self._in += data
        return not data
