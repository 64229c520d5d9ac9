"""The courier: an MPI rank beside an engine that has processes of its own, each of which it serves over a Unix socket.

It decides nothing about KV and keeps none. `python -m hpcserve.kv.courier_rank SOCKET...` runs one alone: rank n
listens on the n-th socket.
"""

from __future__ import annotations

import logging
import mmap
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from hpcserve.errors import KVError
from hpcserve.kv import courier_wire as wire
from hpcserve.kv.courier_memory import CourierMemory
from hpcserve.kv.frames import Frames
from hpcserve.kv.mpi import MpiCore
from hpcserve.kv.mpi_world import MpiWorld, join_world
from hpcserve.kv.progress import Pace

log = logging.getLogger(__name__)

_HELLO_TIMEOUT_S = 30.0
_CLOSE_TIMEOUT_S = 20.0


class Courier:
    """Listens on `path`, which must be in a directory of this user's alone. Each connection has a thread."""

    def __init__(self, path: Path, world: MpiWorld) -> None:
        self._world = world
        self._closing = threading.Event()
        self._sessions: list[threading.Thread] = []
        self._path = path
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._listening.bind(str(path))
        os.chmod(path, 0o600)
        self._listening.listen()
        self._accepting = threading.Thread(target=self._accept, name="courier", daemon=True)
        self._accepting.start()

    def close(self) -> None:
        """Take back what is under way, and close all connections. Pulls of the engines fail."""
        self._closing.set()
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._path.unlink(missing_ok=True)
        for thread in (self._accepting, *self._sessions):
            thread.join(_CLOSE_TIMEOUT_S)

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            if _user_of(connection) != os.getuid():
                connection.close()
                continue
            self._sessions = [thread for thread in self._sessions if thread.is_alive()]
            session = threading.Thread(target=self._serve, args=(connection,), name="courier session", daemon=True)
            self._sessions.append(session)
            session.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            session = _Session(connection, self._world)
        except (KVError, OSError) as err:
            log.error("an engine could not be served: %s", err)
            connection.close()
            return
        session.run(self._closing)


class _Session:
    """One engine process."""

    def __init__(self, connection: socket.socket, world: MpiWorld) -> None:
        connection.settimeout(_HELLO_TIMEOUT_S)
        _, files, _, _ = socket.recv_fds(connection, 1, 1)
        if not files:
            raise KVError("it sent no shared memory")
        self._shared = mmap.mmap(files[0], wire.SHARED_BYTES)
        os.close(files[0])
        self._frames = Frames(connection)
        self._world = world
        register = self._await_register()
        stage = np.frombuffer(self._shared, np.uint8).ctypes.data
        self._memory = CourierMemory(register.sizes, stage, self._send, self._listen)
        self._core = MpiCore(world, lambda _: self._memory, register.timeout_s)
        self._is_closing = False
        self._core.open(())
        self._send(wire.Registered(self._core.description, world.library))

    def run(self, closing: threading.Event) -> None:
        """Serve until the engine or the courier ends."""
        pace = Pace()
        wake = threading.Event()  # nobody sets it: a socket has no way to
        try:
            while not (closing.is_set() or self._is_closing or self._memory.error):
                moved = self._core.step(time.monotonic())
                self._report()
                pace.wait(wake, has_moved=moved)
            self._core.close()
            self._report()
        except KVError as err:
            log.error("a courier serves an engine no more: %s", err.message)
        except Exception:
            log.exception("a courier serves an engine no more")
        finally:
            self._frames.close()

    def _listen(self) -> bool:
        moved = self._frames.flush()
        for frame in self._frames.receive():
            self._take(wire.from_engine(frame))
            moved = True
        return moved

    def _report(self) -> None:
        while self._core.finished:
            over = self._core.finished.popleft()
            self._send(wire.Over(over.pull, over.error))
        while self._core.notes:
            self._send(wire.Heard(self._core.notes.popleft()))

    def _take(self, message: wire.FromEngine) -> None:
        if isinstance(message, wire.Pull):
            self._core.begin(message.pull, message.peer, message.copies, message.note)
        elif isinstance(message, wire.Cancel):
            self._core.stop(message.pull)
        elif isinstance(message, wire.Tell):
            self._core.tell(message.peer, message.note)
        elif isinstance(message, wire.Done):
            self._memory.done(message)
        elif isinstance(message, wire.Bye):
            self._is_closing = True

    def _await_register(self) -> wire.Register:
        deadline = time.monotonic() + _HELLO_TIMEOUT_S
        while time.monotonic() < deadline:
            for frame in self._frames.receive():
                message = wire.from_engine(frame)
                if isinstance(message, wire.Register):
                    return message
                raise KVError("the engine is out of step")
            time.sleep(1e-3)
        raise KVError(f"it said nothing for {_HELLO_TIMEOUT_S:g} s")

    def _send(self, message: wire.FromCourier) -> None:
        with suppress(KVError):  # a dead engine is found where it is listened to
            self._frames.send(wire.encode(message))


def _user_of(connection: socket.socket) -> int:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])


def main(paths: Sequence[str]) -> None:
    """Run one courier until SIGTERM."""
    logging.basicConfig(level=logging.INFO)
    world = join_world()
    courier = Courier(Path(paths[world.rank]), world)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    courier.close()
    os._exit(0)  # MPI's own end waits for all ranks


if __name__ == "__main__":
    main(sys.argv[1:])
