"""The engine's end of a courier: `CourierTransport`, for engines in processes of their own, where MPI cannot be.

MPI lives in the courier, which is the rank's process (`courier_rank`). Memory of the engine stays the engine's: ranges
are copied into shared memory that only the two have, and out of it. Nothing but this process writes to its memory.
"""

from __future__ import annotations

import logging
import mmap
import os
import socket
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hpcserve.errors import KVError
from hpcserve.kv import courier_wire as wire
from hpcserve.kv.frames import Frames
from hpcserve.kv.memory import check
from hpcserve.kv.progress import ThreadedTransport
from hpcserve.kv.range_copies import Marks, RangeCopies, still_running
from hpcserve.kv.transport import Abilities, Copy, Finished, Region

log = logging.getLogger(__name__)

_ANSWER_TIMEOUT_S = 60.0
_FAREWELL_S = 10.0


class CourierTransport(ThreadedTransport):
    """Talks to the courier that listens on `path`. Raises `KVError` where none does."""

    def __init__(self, path: str | Path, *, timeout_s: float = 30.0, strict: bool = False) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            connection.connect(str(path))
        except OSError as err:
            connection.close()
            raise KVError(f"no courier at {path}: {err.strerror}") from err
        warning = "KV goes through shared memory: two more copies on each side"
        if strict:
            connection.close()
            raise KVError(f"{warning}; strict: true refuses that (use kv.transport: nixl)")
        abilities = Abilities(path="MPI through a courier", warnings=(warning,))
        super().__init__("mpi", abilities, lambda: CourierCore(connection, timeout_s))


class CourierCore:
    """`Core` by way of the courier."""

    def __init__(self, connection: socket.socket, timeout_s: float) -> None:
        self.finished: deque[Finished] = deque()
        self.notes: deque[bytes] = deque()
        self.description = b""
        self._socket = connection
        self._timeout_s = timeout_s
        self._running: set[int] = set()
        self._copying: list[tuple[int, Marks]] = []
        self._heard_at = time.monotonic()

    def open(self, regions: Sequence[Region]) -> None:
        """See `Core`."""
        self._sizes = [region.size for region in regions]
        self._copies = RangeCopies(regions)
        file = os.memfd_create("hpcserve-kv", os.MFD_CLOEXEC)
        try:
            os.ftruncate(file, wire.SHARED_BYTES)
            self._shared = mmap.mmap(file, wire.SHARED_BYTES)
            socket.send_fds(self._socket, [b"\0"], [file])
        except OSError as err:
            raise KVError(f"no shared memory of {wire.SHARED_BYTES >> 20} MiB: {err.strerror}") from err
        finally:
            os.close(file)
        self._stage = np.frombuffer(self._shared, np.uint8).ctypes.data
        for stream in self._copies.streams.values():
            stream.pin(self._stage, wire.SHARED_BYTES)
        self._frames = Frames(self._socket)
        self._send(wire.Register(tuple(self._sizes), self._timeout_s))
        self.description = self._await_description()

    def begin(self, pull: int, peer: bytes, copies: Sequence[Copy], note: bytes) -> None:
        """See `Core`."""
        if not self._running:
            self._heard_at = time.monotonic()
        self._running.add(pull)
        self._send(wire.Pull(pull, peer, tuple(copies), note))

    def stop(self, pull: int) -> None:
        """See `Core`."""
        self._send(wire.Cancel(pull))

    def tell(self, peer: bytes, note: bytes) -> None:
        """See `Core`."""
        self._send(wire.Tell(peer, note))

    def step(self, now: float) -> bool:
        """See `Core`. Raises `KVError` when the courier is dead, or silent for longer than any pull may take."""
        moved = self._frames.flush() | self._finish_copies()
        for frame in self._frames.receive():
            self._take(wire.from_courier(frame))
            moved, self._heard_at = True, now
        if self._running and now - self._heard_at > 4 * self._timeout_s:
            raise KVError(f"the courier was silent for {4 * self._timeout_s:g} s")
        return moved

    def close(self) -> None:
        """See `Core`. The courier takes back what is under way, and then closes the connection."""
        deadline = time.monotonic() + _FAREWELL_S
        try:
            self._send(wire.Bye())
            while time.monotonic() < deadline:
                if not self.step(time.monotonic()):
                    time.sleep(1e-3)
        except KVError:  # it is closed: the usual end
            pass
        self._frames.close()

    def _await_description(self) -> bytes:
        deadline = time.monotonic() + _ANSWER_TIMEOUT_S
        while time.monotonic() < deadline:
            for frame in self._frames.receive():
                answer = wire.from_courier(frame)
                if not isinstance(answer, wire.Registered) or answer.error:
                    raise KVError(answer.error if isinstance(answer, wire.Registered) else "the courier is out of step")
                return answer.description
            time.sleep(1e-3)
        raise KVError(f"the courier did not answer within {_ANSWER_TIMEOUT_S:g} s")

    def _take(self, message: wire.FromCourier) -> None:
        if isinstance(message, wire.Over):
            self._running.discard(message.pull)
            self.finished.append(Finished(message.pull, message.error))
        elif isinstance(message, wire.Heard):
            self.notes.append(message.note)
        elif isinstance(message, wire.Load | wire.Store):
            self._copy(message)

    def _copy(self, order: wire.Load | wire.Store) -> None:
        try:
            check(order.ranges, self._sizes)
            stage = self._stage + order.offset
            is_load = isinstance(order, wire.Load)
            marks = (self._copies.gather if is_load else self._copies.scatter)(order.ranges, stage)
        except KVError as err:
            self._send(wire.Done(order.id, err.message))
        else:
            self._copying.append((order.id, marks))

    def _finish_copies(self) -> bool:
        """Tell of copies that are over."""
        copying = [(number, still_running(marks)) for number, marks in self._copying]
        self._copying = [(number, marks) for number, marks in copying if marks]
        for number, marks in copying:
            if not marks:
                self._send(wire.Done(number, ""))
        return len(self._copying) < len(copying)

    def _send(self, message: wire.FromEngine) -> None:
        self._frames.send(wire.encode(message))
