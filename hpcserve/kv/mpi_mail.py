"""The non-blocking MPI calls of one endpoint: control messages out and in, and bytes from and to memory.

Nothing here waits, and nothing is received with a blocking call: a sender may be stopped in the middle of a message.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import Any

from hpcserve.errors import KVError
from hpcserve.kv.mpi_wire import Control, decode_control, encode
from hpcserve.kv.mpi_world import FIRST_DATA_TAG, MpiWorld

log = logging.getLogger(__name__)


class Mail:
    """Talks for one endpoint. One thread at a time."""

    def __init__(self, world: MpiWorld) -> None:
        self._world = world
        if not world.endpoints:
            raise KVError(f"this process has {FIRST_DATA_TAG - 1} MPI endpoints open, and there are no more")
        self.endpoint = world.endpoints.popleft()
        self._going: list[tuple[Any, bytes]] = []
        self._coming: deque[tuple[int, Any, bytearray]] = deque()

    def new_tag(self) -> int:
        """Return a tag for the data of one pull that no other pull of this process uses."""
        highest = int(self._world.comm.Get_attr(self._world.mpi.TAG_UB))
        return FIRST_DATA_TAG + next(self._world.data_tags) % (highest - FIRST_DATA_TAG)

    def send(self, rank: int, endpoint: int, message: Control) -> None:
        """Send a control message soon; messages from here to one endpoint arrive in order."""
        data = encode(message)
        self._going.append((self._world.comm.Isend([data, self._world.mpi.BYTE], rank, endpoint), data))

    def receive(self) -> list[tuple[int, Control]]:
        """Return what arrived: sender's rank and message."""
        self._match()
        received: list[tuple[int, Control]] = []
        late: set[int] = set()  # ranks whose earlier message is still on its way
        for _ in range(len(self._coming)):
            rank, request, data = self._coming.popleft()
            if rank in late or not request.Test():
                late.add(rank)
                self._coming.append((rank, request, data))
                continue
            try:
                received.append((rank, decode_control(data)))
            except KVError as err:
                log.warning("ignored a message of MPI rank %d: %s", rank, err)
        return received

    def step(self) -> bool:
        """Let go of control messages that have left; whether there were any."""
        num_going = len(self._going)
        self._going = [(request, data) for request, data in self._going if not request.Test()]
        return len(self._going) < num_going

    def close(self, timeout_s: float) -> None:
        """Wait, boundedly, for control messages to leave. The endpoint's number may be another's then."""
        deadline = time.monotonic() + timeout_s
        while self._going and time.monotonic() < deadline:
            if not self.step():
                time.sleep(1e-3)
        self._world.endpoints.append(self.endpoint)

    def send_bytes(self, address: int, size: int, rank: int, tag: int) -> Any:
        """Begin to send memory, and return MPI's request."""
        return self._world.comm.Isend([self._buffer(address, size), self._world.mpi.BYTE], rank, tag)

    def receive_bytes(self, address: int, size: int, rank: int, tag: int) -> Any:
        """Begin to receive into memory, and return MPI's request."""
        return self._world.comm.Irecv([self._buffer(address, size), self._world.mpi.BYTE], rank, tag)

    def completed(self, requests: list[Any]) -> list[int]:
        """Return the indices of requests that are over, in order."""
        return sorted(self._world.mpi.Request.Testsome(requests) or ()) if requests else []

    def completed_or_cancelled(self, requests: list[Any]) -> list[tuple[int, bool]]:
        """Return index and "was cancelled" of each request that is over, in order."""
        if not requests:
            return []
        statuses = [self._world.mpi.Status() for _ in requests]
        indices = self._world.mpi.Request.Testsome(requests, statuses)
        pairs = zip(indices or (), statuses, strict=False)
        return sorted((index, bool(status.Is_cancelled())) for index, status in pairs)

    def _buffer(self, address: int, size: int) -> Any:
        return self._world.mpi.buffer.fromaddress(address, size)

    def _match(self) -> None:
        status = self._world.mpi.Status()
        while (message := self._world.comm.Improbe(tag=self.endpoint, status=status)) is not None:
            data = bytearray(status.Get_count(self._world.mpi.BYTE))
            request = message.Irecv([data, self._world.mpi.BYTE])
            self._coming.append((status.Get_source(), request, data))
