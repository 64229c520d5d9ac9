"""An end of the KV transport on memory that nobody needs: what preflight pulls from, and into."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from hpcserve.comm.protocol import Exhibit
from hpcserve.errors import KVError
from hpcserve.kv.factory import open_transport
from hpcserve.kv.transport import Copy, KVTransport, Region, TransportKind

SIZE = 16 << 20
_NUM_PULLS = 4
_TIMEOUT_S = 10.0
_LOOK_S = 100e-6


@dataclass(frozen=True)
class Pulled:
    """What came of pulling from a peer."""

    gb_per_s: float = 0.0  # median without the first pull, which connects; 10^9 bytes a second
    error: str | None = None


class ScratchEnd:
    """A transport with memory of its own. Everything blocking is done on one thread, as transports want it."""

    def __init__(self, kind: TransportKind) -> None:
        self._kind = kind
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="preflight")
        self._transport: KVTransport | None = None

    async def open(self) -> Exhibit:
        """Register the memory. Raises `KVError`."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._open)

    async def pull(self, exhibit: Exhibit) -> Pulled:
        """Pull a peer's memory several times, and look at what arrives."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._pull_often, exhibit)

    async def close(self) -> None:
        """Free it. Safe to call twice, and when it did not open."""
        if self._transport is not None:
            transport, self._transport = self._transport, None
            await asyncio.get_running_loop().run_in_executor(self._thread, transport.close)
        self._thread.shutdown(wait=False)

    def _open(self) -> Exhibit:
        self._memory = np.frombuffer(os.urandom(SIZE), np.uint8).copy()
        self._ours = np.zeros(SIZE, np.uint8)
        self._transport = transport = open_transport(self._kind, timeout_s=_TIMEOUT_S)
        transport.register([Region(each.ctypes.data, SIZE) for each in (self._memory, self._ours)])
        return Exhibit(
            description=transport.describe(),
            path=transport.abilities.path,
            size=SIZE,
            checksum=zlib.crc32(self._memory.data),
        )

    def _pull_often(self, exhibit: Exhibit) -> Pulled:
        assert self._transport is not None
        times = []
        for _ in range(_NUM_PULLS):
            self._ours[:] = 0
            started = time.perf_counter()
            error = self._pull(self._transport, exhibit)
            times.append(time.perf_counter() - started)
            if error is None and zlib.crc32(self._ours.data[: exhibit.size]) != exhibit.checksum:
                error = "what arrived is not what was sent"
            if error is not None:
                return Pulled(error=error)
        return Pulled(exhibit.size / statistics.median(times[1:]) / 1e9)

    def _pull(self, transport: KVTransport, exhibit: Exhibit) -> str | None:
        if exhibit.size > SIZE:
            raise KVError(f"the peer shows {exhibit.size} bytes, and there is room for {SIZE}: another version?")
        pull = transport.pull(exhibit.description, [Copy(0, 0, 1, 0, exhibit.size)])
        deadline = time.monotonic() + 4 * _TIMEOUT_S
        while time.monotonic() < deadline:
            for finished in transport.poll()[0]:
                if finished.pull == pull:
                    return finished.error
            time.sleep(_LOOK_S)
        return f"no end of it within {4 * _TIMEOUT_S:g} s"
