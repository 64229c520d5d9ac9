"""The end that pulls: asks, receives, and knows when a destination is free again.

A receive that was posted into memory must end before the memory is given back. One that no message has met yet is taken
back at once. One that a message has met cannot be taken back: it is waited for. If it does not end either, and the peer
is not known to be dead, MPI might still write there, so the endpoint stops for good rather than let it.
"""

from __future__ import annotations

import ctypes
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from hpcserve.errors import KVError
from hpcserve.kv.memory import Incoming, Memory, check
from hpcserve.kv.messages import Message, cut
from hpcserve.kv.mpi_mail import Mail
from hpcserve.kv.mpi_wire import Ask, End, Note, Place, Stop, pack_ranges
from hpcserve.kv.peers import is_gone
from hpcserve.kv.transport import Copy, Finished

log = logging.getLogger(__name__)

_MAX_MESSAGES = 256
_MAX_BYTES = 256 << 20
_MAX_ABANDONED = 4096
_LOOK_AFTER_S = 0.25
"""How long a peer on this machine is silent before it is looked for."""


@dataclass
class _Pull:
    id: int
    place: Place
    note: bytes
    tag: int
    messages: list[Message]
    last_moved: float
    phase: Literal["running", "stopping", "cancelling"] = "running"
    error: str | None = None
    num_posted: int = 0
    num_received: int = 0
    num_bytes: int = 0  # posted and not received
    posted: list[tuple[Any, Incoming, int]] = field(default_factory=list)  # with the message's index, in order
    storing: list[Incoming] = field(default_factory=list)
    looked_at: float = 0.0


class Pulling:
    """All pulls of this endpoint."""

    def __init__(self, mail: Mail, memory: Memory, timeout_s: float, finished: deque[Finished]) -> None:
        self._mail = mail
        self._memory = memory
        self._timeout_s = timeout_s
        self._finished = finished
        self._pulls: dict[int, _Pull] = {}
        self._abandoned: dict[int, tuple[int, int, list[int]]] = {}  # by tag: rank, messages received, sizes of all
        self._late_ends: dict[int, End] = {}  # of pulls that were given up, and are not over yet
        self._drains: list[tuple[Any, object]] = []

    def begin(self, pull: int, place: Place, copies: Sequence[Copy], note: bytes, now: float) -> None:
        """Ask the peer. Raises `KVError` for ranges that are not there."""
        messages = cut(copies, max(place.pack_bytes, self._memory.pack_bytes))
        for message in messages:
            check(message.local, self._memory.sizes)
            check(message.remote, place.sizes)
        tag = self._mail.new_tag()
        self._pulls[pull] = _Pull(pull, place, note, tag, messages, now)
        if messages:
            counts, ranges = pack_ranges(messages)
            ask = Ask(pull, place.nonce, self._mail.endpoint, tag, counts, ranges)
            self._mail.send(place.rank, place.endpoint, ask)

    def stop(self, pull: int, reason: str, now: float) -> None:
        """Take a pull back: the peer is told, and says what it has sent already."""
        going = self._pulls.get(pull)
        if going is not None and going.phase == "running":
            going.phase, going.error, going.last_moved = "stopping", reason, now
            self._mail.send(going.place.rank, going.place.endpoint, Stop(pull, self._mail.endpoint, going.tag))

    def ended(self, rank: int, end: End, now: float) -> None:
        """Hear that no more comes for a pull."""
        pull = self._pulls.get(end.pull)
        if pull is None or pull.tag != end.tag:
            self._drain_abandoned(end)
            return
        if pull.tag in self._abandoned:
            self._late_ends[pull.tag] = end
            return
        pull.error = pull.error or end.reason or None
        num_sent = len(pull.messages) if end.num_sent is None else end.num_sent
        self._take_back(pull, num_sent, now)
        self._drain(rank, pull.tag, [message.size for message in pull.messages[pull.num_posted : num_sent]])
        pull.num_posted = len(pull.messages)

    def step(self, now: float) -> bool:
        """Move all pulls on; whether any moved. Raises `KVError` if memory cannot be given back safely."""
        moved = self._step_drains()
        for pull in list(self._pulls.values()):
            if pull.phase == "running" and now - pull.last_moved > self._timeout_s:
                self._give_up(pull, f"rank {pull.place.rank} was silent for {self._timeout_s:g} s", now)
            elif now - max(pull.last_moved, pull.looked_at) > _LOOK_AFTER_S:
                self._look_for(pull, now)
            if self._move(pull):
                moved, pull.last_moved = True, now
            self._settle(pull, now)
        return moved

    def close(self, now: float) -> bool:
        """Take all pulls back; whether none is left. Call again with `step` in between."""
        for pull in list(self._pulls):
            self.stop(pull, "the transport is closed", now)
        return not self._pulls

    def take_all_back(self, now: float) -> None:
        """Wait for no peer any more."""
        for pull in self._pulls.values():
            self._give_up(pull, "the transport is closed", now)

    def _move(self, pull: _Pull) -> bool:
        moved = pull.phase == "running" and self._post(pull)
        over = self._over(pull)
        for index, was_cancelled in reversed(over):
            _, incoming, number = pull.posted.pop(index)
            pull.num_bytes -= pull.messages[number].size
            if was_cancelled:
                incoming.release()
            else:
                pull.num_received += 1
                incoming.commit()
                pull.storing.append(incoming)
        return self._store(pull) or bool(over) or moved

    def _over(self, pull: _Pull) -> list[tuple[int, bool]]:
        requests = [request for request, _, _ in pull.posted]
        if pull.phase == "cancelling":
            return self._mail.completed_or_cancelled(requests)
        return [(index, False) for index in self._mail.completed(requests)]

    def _post(self, pull: _Pull) -> bool:
        num_posted = pull.num_posted
        while pull.num_posted < len(pull.messages) and len(pull.posted) < _MAX_MESSAGES and pull.num_bytes < _MAX_BYTES:
            message = pull.messages[pull.num_posted]
            incoming = self._memory.store(message.local)
            if incoming is None:
                break
            request = self._mail.receive_bytes(incoming.room, message.size, pull.place.rank, pull.tag)
            pull.posted.append((request, incoming, pull.num_posted))
            pull.num_posted += 1
            pull.num_bytes += message.size
        return pull.num_posted > num_posted

    def _store(self, pull: _Pull) -> bool:
        stored = []
        for incoming in pull.storing:
            try:
                if incoming.is_stored():
                    stored.append(incoming)
            except KVError as err:
                pull.error = pull.error or err.message
                stored.append(incoming)
        for incoming in stored:
            pull.storing.remove(incoming)
            incoming.release()
        return bool(stored)

    def _settle(self, pull: _Pull, now: float) -> None:
        is_idle = not pull.posted and not pull.storing
        if pull.phase == "running":
            if pull.error is not None:
                self.stop(pull.id, pull.error, now)
            elif is_idle and pull.num_posted == len(pull.messages):
                self._report(pull)
        elif pull.phase == "stopping":
            if now - pull.last_moved > self._timeout_s:
                self._give_up(pull, pull.error or "", now)
        elif is_idle:
            self._report(pull)
        elif now - pull.last_moved > self._timeout_s and not is_gone(pull.place):
            raise KVError(
                f"rank {pull.place.rank} is silent in the middle of a message: MPI may still write into memory that "
                "is wanted back"
            )
        elif is_gone(pull.place):
            self._report(pull)

    def _look_for(self, pull: _Pull, now: float) -> None:
        pull.looked_at = now
        if pull.phase != "cancelling" and is_gone(pull.place):
            self._give_up(pull, f"rank {pull.place.rank} is dead (process {pull.place.pid})", now)

    def _give_up(self, pull: _Pull, reason: str, now: float) -> None:
        log.warning("pull %d from MPI rank %d on %s: %s", pull.id, pull.place.rank, pull.place.host, reason)
        self.stop(pull.id, reason, now)  # heard if the peer wakes up
        self._take_back(pull, 0, now)
        if len(self._abandoned) < _MAX_ABANDONED:
            sizes = [message.size for message in pull.messages]
            self._abandoned[pull.tag] = (pull.place.rank, pull.num_received, sizes)

    def _take_back(self, pull: _Pull, num_sent: int, now: float) -> None:
        """Cancel receives of messages that do not come."""
        for request, _, number in pull.posted:
            if number >= num_sent:
                request.Cancel()
        pull.phase, pull.last_moved = "cancelling", now

    def _report(self, pull: _Pull) -> None:
        del self._pulls[pull.id]
        if pull.tag in self._abandoned:
            self._abandoned[pull.tag] = (pull.place.rank, pull.num_received, self._abandoned[pull.tag][2])
            if (end := self._late_ends.pop(pull.tag, None)) is not None:
                self._drain_abandoned(end)
        if pull.note:
            self._mail.send(pull.place.rank, pull.place.endpoint, Note(pull.place.nonce, pull.note))
        self._finished.append(Finished(pull.id, pull.error))

    def _drain_abandoned(self, end: End) -> None:
        rank, num_received, sizes = self._abandoned.pop(end.tag, (0, 0, []))
        self._drain(rank, end.tag, sizes[num_received : end.num_sent])

    def _drain(self, rank: int, tag: int, sizes: list[int]) -> None:
        """Receive what was sent for nobody, else MPI would keep it for ever."""
        for size in sizes:
            scratch = ctypes.create_string_buffer(size)
            self._drains.append((self._mail.receive_bytes(ctypes.addressof(scratch), size, rank, tag), scratch))

    def _step_drains(self) -> bool:
        over = self._mail.completed([request for request, _ in self._drains])
        for index in reversed(over):
            del self._drains[index]
        return bool(over)
