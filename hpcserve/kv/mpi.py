"""KV over MPI, in the process that has the memory: `MpiTransport`.

A pull is a small message to the peer's rank, which answers with non-blocking sends of the ranges straight from its
memory, received straight into ours. MPI has no login and no encryption: every rank of the world may read what is
registered here, and nobody else.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence

from hpcserve.errors import KVError
from hpcserve.kv.memory import HostMemory, Memory
from hpcserve.kv.mpi_mail import Mail
from hpcserve.kv.mpi_pulling import Pulling
from hpcserve.kv.mpi_serving import Serving
from hpcserve.kv.mpi_wire import Ask, Control, End, Note, Place, Stop, encode, read_place
from hpcserve.kv.mpi_world import MpiWorld, join_world
from hpcserve.kv.peers import start_time, this_host
from hpcserve.kv.progress import ThreadedTransport
from hpcserve.kv.transport import Abilities, Copy, Finished, Region

log = logging.getLogger(__name__)

_FAREWELL_S = 5.0
_NO_CUDA = "this MPI does not read device memory: KV of GPUs goes through pinned host memory"


class MpiTransport(ThreadedTransport):
    """One endpoint of this process's rank. Every rank must have called `join_world`, or opens a transport."""

    def __init__(self, *, timeout_s: float = 30.0, strict: bool = False) -> None:
        world = join_world()
        is_direct = world.is_cuda_direct
        warnings = () if is_direct else (_NO_CUDA,)
        abilities = Abilities(path=world.library, is_cuda_direct=is_direct, warnings=warnings)

        def make_memory(regions: Sequence[Region]) -> Memory:
            if is_direct or all(region.device is None for region in regions):
                return HostMemory(regions)
            if strict:
                raise KVError(f"{_NO_CUDA}; strict: true refuses that (a CUDA-aware MPI, or kv.transport: nixl)")
            from hpcserve.kv.pinned import PinnedMemory

            log.warning("%s", _NO_CUDA)
            return PinnedMemory(regions)

        super().__init__("mpi", abilities, lambda: MpiCore(world, make_memory, timeout_s))


class MpiCore:
    """`Core` over MPI. `make_memory` decides how the registered ranges are reached."""

    def __init__(self, world: MpiWorld, make_memory: Callable[[Sequence[Region]], Memory], timeout_s: float) -> None:
        self.finished: deque[Finished] = deque()
        self.notes: deque[bytes] = deque()
        self.description = b""
        self._world = world
        self._make_memory = make_memory
        self._timeout_s = timeout_s
        self._nonce = secrets.randbits(48)

    def open(self, regions: Sequence[Region]) -> None:
        """See `Core`."""
        self._memory = self._make_memory(regions)
        self._mail = Mail(self._world)
        self._pulling = Pulling(self._mail, self._memory, self._timeout_s, self.finished)
        self._serving = Serving(self._mail, self._memory, self._nonce, self._timeout_s)
        place = Place(
            world=self._world.id,
            rank=self._world.rank,
            endpoint=self._mail.endpoint,
            nonce=self._nonce,
            host=this_host(),
            pid=os.getpid(),
            started=start_time(os.getpid()) or 0,
            sizes=self._memory.sizes,
            pack_bytes=self._memory.pack_bytes,
        )
        self.description = encode(place)

    def begin(self, pull: int, peer: bytes, copies: Sequence[Copy], note: bytes) -> None:
        """See `Core`."""
        try:
            self._pulling.begin(pull, self._find(peer), copies, note, time.monotonic())
        except KVError as err:
            self.tell(peer, note)
            self.finished.append(Finished(pull, err.message))

    def stop(self, pull: int) -> None:
        """See `Core`."""
        self._pulling.stop(pull, "cancelled", time.monotonic())

    def tell(self, peer: bytes, note: bytes) -> None:
        """See `Core`."""
        if not note:
            return
        try:
            place = self._find(peer)
        except KVError as err:
            log.warning("a note has nobody to go to: %s", err.message)
        else:
            self._mail.send(place.rank, place.endpoint, Note(place.nonce, note))

    def step(self, now: float) -> bool:
        """See `Core`."""
        moved = self._memory.step()
        for rank, message in self._mail.receive():
            self._take(rank, message, now)
            moved = True
        return self._pulling.step(now) | self._serving.step(now) | self._mail.step() | moved

    def close(self) -> None:
        """See `Core`. Peers are told; one that is silent is waited for a few seconds."""
        deadline = time.monotonic() + min(_FAREWELL_S, self._timeout_s)
        while not (self._pulling.close(time.monotonic()) & self._serving.close()):
            if time.monotonic() > deadline:
                self._pulling.take_all_back(time.monotonic())
                self.step(time.monotonic())
                break
            if not self.step(time.monotonic()):
                time.sleep(1e-3)
        self._mail.close(max(0.0, deadline - time.monotonic()))
        self._memory.close()

    def _find(self, peer: bytes) -> Place:
        place = read_place(peer)
        if place.world != self._world.id:
            raise KVError(f"rank {place.rank} belongs to another MPI world: KV over MPI stays in one allocation")
        if not 0 <= place.rank < self._world.size:
            raise KVError(f"there is no MPI rank {place.rank}; the world has {self._world.size}")
        return place

    def _take(self, rank: int, message: Control, now: float) -> None:
        if isinstance(message, Ask):
            self._serving.take(rank, message, now)
        elif isinstance(message, Stop):
            self._serving.stop(rank, message)
        elif isinstance(message, End):
            self._pulling.ended(rank, message, now)
        elif message.nonce == self._nonce:
            self.notes.append(message.body)
