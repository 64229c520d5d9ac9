"""One process among those that `hpcserve bench kv` has pull from each other: `KvSide`. It decides nothing."""

from __future__ import annotations

import os
import random
import statistics
import time
import zlib
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import msgspec
import numpy as np

from hpcserve.cluster.launcher import node_name
from hpcserve.errors import KVError
from hpcserve.kv.factory import open_transport
from hpcserve.kv.transport import Copy, KVTransport, Region

BenchKind = Literal["nixl", "mpi", "courier"]

_LOOK_S = 20e-6
_OURS = 1  # region that is pulled into


class Introduction(msgspec.Struct, frozen=True):
    """What a side says of itself when its memory is registered."""

    description: bytes
    node: str
    pid: int
    path: str
    warnings: tuple[str, ...]
    sums: dict[int, int]  # checksum of the first bytes, by their number


class Timing(msgspec.Struct, frozen=True):
    """Pulls of one size from one peer."""

    median_s: float
    is_intact: bool
    error: str | None = None


class KvSide:
    """One end of a transport, with a region of known bytes and one to pull into."""

    def __init__(self, kind: BenchKind, rank: int, timeout_s: float) -> None:
        self._kind: BenchKind = kind
        self._rank = rank
        self._timeout_s = timeout_s
        self._stack = ExitStack()
        self._num_written = 0

    def open(self, sizes: list[int]) -> Introduction:
        """Register memory for pulls of these sizes, in bytes. Raises `KVError`."""
        self._source = np.random.default_rng(self._rank).integers(0, 256, max(sizes), dtype=np.uint8)
        self._ours = np.zeros(max(sizes), np.uint8)
        self._transport = self._stack.enter_context(closing(self._open_transport()))
        self._transport.register([Region(each.ctypes.data, each.size) for each in (self._source, self._ours)])
        abilities = self._transport.abilities
        return Introduction(
            description=self._transport.describe(),
            node=node_name(),
            pid=os.getpid(),
            path=abilities.path,
            warnings=abilities.warnings,
            sums={size: zlib.crc32(self._source.data[:size]) for size in sizes},
        )

    def pull(self, peer: bytes, size: int, block: int | None, checksum: int, repeats: int) -> Timing:
        """Pull `size` bytes several times, in one range or in blocks in any order, and look at them each time."""
        copies, times = _copies(size, block), []
        for _ in range(repeats):
            self._num_written += 1
            self._ours[:size] = self._num_written % 251  # what a pull does not write is seen
            started = time.perf_counter()
            error = self._wait(self._transport.pull(peer, copies))
            times.append(time.perf_counter() - started)
            if error is not None:
                return Timing(0.0, is_intact=False, error=error)
            if zlib.crc32(self._ours.data[:size]) != checksum:
                return Timing(statistics.median(times), is_intact=False, error="what arrived is not what was sent")
        return Timing(statistics.median(times), is_intact=True)

    def memcpy(self, size: int, repeats: int) -> float:
        """Return the median seconds that copying takes inside of this process."""
        times = []
        for _ in range(repeats):
            started = time.perf_counter()
            np.copyto(self._ours[:size], self._source[:size])
            times.append(time.perf_counter() - started)
        return statistics.median(times)

    def send(self, rank: int, size: int, repeats: int) -> None:
        """Send to a rank that is in `receive`, with MPI's plain calls."""
        from hpcserve.kv.mpi_world import join_world

        world = join_world()
        for _ in range(repeats):
            world.comm.Recv(bytearray(1), rank)
            world.comm.Send([self._source[:size], world.mpi.BYTE], rank)

    def receive(self, rank: int, size: int, repeats: int) -> float:
        """Return the median seconds until a message that was asked for is here, with MPI's plain calls."""
        from hpcserve.kv.mpi_world import join_world

        world, times = join_world(), []
        for _ in range(repeats):
            self._ours[:size] = 0
            started = time.perf_counter()
            world.comm.Send(bytearray(1), rank)
            world.comm.Recv([self._ours[:size], world.mpi.BYTE], rank)
            times.append(time.perf_counter() - started)
        return statistics.median(times)

    def close(self) -> None:
        """Let go of the memory."""
        self._stack.close()

    def _open_transport(self) -> KVTransport:
        if self._kind != "courier":
            return open_transport(self._kind, timeout_s=self._timeout_s)
        from hpcserve.kv.courier import CourierTransport
        from hpcserve.kv.courier_rank import Courier
        from hpcserve.kv.mpi_world import join_world

        path = Path(self._stack.enter_context(TemporaryDirectory(prefix="hpcserve-bench-"))) / "courier"
        self._stack.enter_context(closing(Courier(path, join_world())))
        return CourierTransport(path, timeout_s=self._timeout_s)

    def _wait(self, pull: int) -> str | None:
        deadline = time.monotonic() + 4 * self._timeout_s + 1
        while time.monotonic() < deadline:
            for finished in self._transport.poll()[0]:
                if finished.pull == pull:
                    return finished.error
            time.sleep(_LOOK_S)
        raise KVError("a pull did not end in time; please report it")


def _copies(size: int, block: int | None) -> list[Copy]:
    """Return the copies of a pull; blocks go from where they lie to the same place, in a shuffled order."""
    if block is None:
        return [Copy(0, 0, _OURS, 0, size)]
    offsets = list(range(0, size, block))
    random.Random(size).shuffle(offsets)  # noqa: S311 - an order, no secret
    return [Copy(0, offset, _OURS, offset, min(block, size - offset)) for offset in offsets]
