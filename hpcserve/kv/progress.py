"""A transport whose work is done by one thread of its own: a thin shell around a `Core` that is never shared.

MPI and NIXL move bytes only while somebody calls them. The engine's step must not wait for that, and two threads must
not call at once: so one thread makes all calls, and sleeps between them, the longer the less there is to do.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from hpcserve.errors import KVError
from hpcserve.kv.transport import Abilities, Copy, Finished, Region, TransportKind

log = logging.getLogger(__name__)

_OPEN_TIMEOUT_S = 120.0  # pinning hundreds of GB takes its time
_CLOSE_TIMEOUT_S = 20.0
_SLEEPS = ((0.02, 50e-6), (2.0, 250e-6), (10.0, 1e-3))
"""Sleeps for as long as something moved within so many seconds: the next pull often comes soon after one."""
_LONGEST_S = 2e-3


class Core(Protocol):
    """What a transport does, on one thread. Nothing here blocks for longer than a copy takes."""

    finished: deque[Finished]
    notes: deque[bytes]
    description: bytes  # for peers, from `open` on; read by other threads

    def open(self, regions: Sequence[Region]) -> None:
        """Register memory. Raises `KVError`."""
        ...

    def begin(self, pull: int, peer: bytes, copies: Sequence[Copy], note: bytes) -> None:
        """Start a pull; what is wrong with it goes to `finished`."""
        ...

    def stop(self, pull: int) -> None:
        """Cancel a pull, if it still runs."""
        ...

    def tell(self, peer: bytes, note: bytes) -> None:
        """Send a note, best effort."""
        ...

    def step(self, now: float) -> bool:
        """Move what can be moved at this monotonic time; whether anything did."""
        ...

    def close(self) -> None:
        """Let go of everything, in bounded time."""
        ...


class ThreadedTransport:
    """`KVTransport` around a core. The thread lives from `register` to `close`."""

    def __init__(self, kind: TransportKind, abilities: Abilities, make_core: Callable[[], Core]) -> None:
        self.kind: TransportKind = kind
        self.abilities = abilities
        self._make_core = make_core
        self._commands: deque[Callable[[Core], None]] = deque()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._core: Core | None = None
        self._num_pulls = 0
        self._running: set[int] = set()
        self._finished: deque[Finished] = deque()
        self._notes: deque[bytes] = deque()
        self._broken = ""

    def register(self, regions: Sequence[Region]) -> None:
        """See `KVTransport`. Raises `KVError`."""
        if self._thread is not None:
            raise KVError("the transport has its memory already; register all regions in one call")
        opened: deque[Core | KVError] = deque()
        is_open = threading.Event()
        self._thread = threading.Thread(
            target=self._live, args=(tuple(regions), opened, is_open), name=f"kv-{self.kind}", daemon=True
        )
        self._thread.start()
        if not is_open.wait(_OPEN_TIMEOUT_S):
            self._closing.set()
            raise KVError(f"{self.kind}: registering memory took longer than {_OPEN_TIMEOUT_S:g} s")
        outcome = opened.popleft()
        if isinstance(outcome, KVError):
            raise outcome
        self._core = outcome

    def describe(self) -> bytes:
        """See `KVTransport`. Raises `KVError` before `register`."""
        if self._core is None:
            raise KVError("nothing is registered yet, so there is nothing to describe")
        return self._core.description

    def pull(self, peer: bytes, copies: Sequence[Copy], *, note: bytes = b"") -> int:
        """See `KVTransport`."""
        self._num_pulls += 1
        pull, wanted = self._num_pulls, tuple(copies)
        self._running.add(pull)
        self._do(lambda core: core.begin(pull, peer, wanted, note))
        return pull

    def cancel(self, pull: int) -> None:
        """See `KVTransport`."""
        if pull in self._running:
            self._do(lambda core: core.stop(pull))

    def notify(self, peer: bytes, note: bytes) -> None:
        """See `KVTransport`."""
        self._do(lambda core: core.tell(peer, note))

    def poll(self) -> tuple[list[Finished], list[bytes]]:
        """See `KVTransport`."""
        if (self._broken or self._thread is None) and self._running:
            self._finished.extend(Finished(pull, self._broken or "nothing is registered") for pull in self._running)
        finished = [item for item in _drain(self._finished) if item.pull in self._running]
        self._running.difference_update(item.pull for item in finished)
        return finished, _drain(self._notes)

    def close(self) -> None:
        """See `KVTransport`."""
        self._closing.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(_CLOSE_TIMEOUT_S)
            if self._thread.is_alive():
                log.error("%s: the thread that moves KV did not end within %g s", self.kind, _CLOSE_TIMEOUT_S)

    def _do(self, command: Callable[[Core], None]) -> None:
        self._commands.append(command)
        self._wake.set()

    def _live(self, regions: Sequence[Region], opened: deque[Core | KVError], is_open: threading.Event) -> None:
        try:
            core = self._make_core()
            core.finished, core.notes = self._finished, self._notes
            core.open(regions)
            opened.append(core)
        except Exception as err:  # noqa: BLE001 - the edge of the thread: `register` raises it
            opened.append(err if isinstance(err, KVError) else KVError(f"{self.kind}: {err!r}"))
            self._broken = "nothing is registered"
            is_open.set()
            return
        is_open.set()
        try:
            self._progress(core)
        except KVError as err:
            log.error("%s: KV is moved no more in this process: %s", self.kind, err.message)
            self._broken = f"the transport broke: {err.message}"
        except Exception as err:  # the edge of the thread: what waits for it must hear
            log.exception("%s: KV is moved no more in this process", self.kind)
            self._broken = f"the transport broke: {err!r}"
        else:
            core.close()
            self._broken = "the transport is closed"

    def _progress(self, core: Core) -> None:
        pace = Pace()
        while not self._closing.is_set():
            self._wake.clear()
            has_obeyed = self._obey(core)
            pace.wait(self._wake, has_moved=core.step(time.monotonic()) or has_obeyed)
        self._obey(core)  # what was said before the end is still said

    def _obey(self, core: Core) -> bool:
        had_any = bool(self._commands)
        while self._commands:
            self._commands.popleft()(core)
        return had_any


class Pace:
    """How long to sleep between two looks: not at all while something moves, then longer and longer."""

    def __init__(self) -> None:
        self._last_moved = time.monotonic()

    def wait(self, wake: threading.Event, *, has_moved: bool) -> None:
        """Sleep until it is time to look again, or until `wake` is set."""
        now = time.monotonic()
        if has_moved:
            self._last_moved = now
            return
        idle_s = now - self._last_moved
        wake.wait(next((sleep_s for within_s, sleep_s in _SLEEPS if idle_s < within_s), _LONGEST_S))


def _drain(queue: deque[Finished] | deque[bytes]) -> list:  # type: ignore[type-arg]  # of the same items
    return [queue.popleft() for _ in range(len(queue))]
