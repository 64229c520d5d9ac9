"""The end that is pulled from: sends what was asked for, from where it lies or through a stage."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from hpcserve.errors import KVError
from hpcserve.kv.memory import Memory, Outgoing, Range, check
from hpcserve.kv.mpi_mail import Mail
from hpcserve.kv.mpi_wire import Ask, End, Stop, unpack_ranges

log = logging.getLogger(__name__)

MAX_MESSAGES = 256
"""How many messages of a pull are under way at once."""


@dataclass
class _Serve:
    rank: int
    ask: Ask
    waiting: deque[list[Range]]
    last_moved: float
    loading: deque[tuple[Outgoing, int]] = field(default_factory=deque)  # and its size, bytes
    sending: list[tuple[Any, Outgoing]] = field(default_factory=list)
    num_sent: int = 0


class Serving:
    """All pulls from this endpoint that are under way. What the ranges mean, and for whom, it does not know."""

    def __init__(self, mail: Mail, memory: Memory, nonce: int, timeout_s: float) -> None:
        self._mail = mail
        self._memory = memory
        self._nonce = nonce
        self._timeout_s = timeout_s
        self._serves: dict[tuple[int, int], _Serve] = {}
        self._stuck: list[Any] = []  # MPI cannot take a send back

    def take(self, rank: int, ask: Ask, now: float) -> None:
        """Begin to serve, or refuse."""
        try:
            if ask.nonce != self._nonce:
                raise KVError("the endpoint that was described is closed")
            messages = unpack_ranges(ask)
            for ranges in messages:
                check(ranges, self._memory.sizes)
        except KVError as err:
            log.warning("refused a pull of MPI rank %d: %s", rank, err.message)
            self._mail.send(rank, ask.reply_to, End(ask.pull, ask.tag, 0, f"refused: {err.message}"))
            return
        self._serves[rank, ask.tag] = _Serve(rank, ask, deque(messages), now)

    def stop(self, rank: int, stop: Stop) -> None:
        """Send no more for a pull, and tell how many messages have been sent."""
        serve = self._serves.get((rank, stop.tag))
        if serve is None:
            self._mail.send(rank, stop.reply_to, End(stop.pull, stop.tag, None, ""))
        else:
            self._end(serve, "")

    def step(self, now: float) -> bool:
        """Move all of them on; whether any moved."""
        moved = False
        for key, serve in list(self._serves.items()):
            try:
                has_moved = self._load(serve) | self._send(serve) | self._finish(serve)
            except KVError as err:
                self._end(serve, err.message)
                has_moved = True
            if has_moved:
                moved, serve.last_moved = True, now
            if not (serve.waiting or serve.loading or serve.sending):
                del self._serves[key]
            elif now - serve.last_moved > 2 * self._timeout_s:
                self._forget(key, serve)
        return moved

    def close(self) -> bool:
        """Send nothing new; whether all that was sent has arrived. To be called again until it has."""
        for serve in self._serves.values():
            if serve.waiting or serve.loading:
                self._end(serve, "the peer closed its transport")
            self._finish(serve)
        return not any(serve.sending for serve in self._serves.values())

    def _load(self, serve: _Serve) -> bool:
        num_loading = len(serve.loading)
        while serve.waiting and len(serve.loading) + len(serve.sending) < MAX_MESSAGES:
            outgoing = self._memory.load(serve.waiting[0])
            if outgoing is None:
                break
            serve.loading.append((outgoing, sum(item.size for item in serve.waiting.popleft())))
        return len(serve.loading) > num_loading

    def _send(self, serve: _Serve) -> bool:
        num_sent = serve.num_sent
        while serve.loading and (address := serve.loading[0][0].address()) is not None:
            outgoing, size = serve.loading.popleft()
            serve.sending.append((self._mail.send_bytes(address, size, serve.rank, serve.ask.tag), outgoing))
            serve.num_sent += 1
        return serve.num_sent > num_sent

    def _finish(self, serve: _Serve) -> bool:
        over = self._mail.completed([request for request, _ in serve.sending])
        for index in reversed(over):
            serve.sending.pop(index)[1].release()
        return bool(over)

    def _end(self, serve: _Serve, reason: str) -> None:
        serve.waiting.clear()
        while serve.loading:
            serve.loading.popleft()[0].release()
        ask = serve.ask
        self._mail.send(serve.rank, ask.reply_to, End(ask.pull, ask.tag, serve.num_sent, reason))

    def _forget(self, key: tuple[int, int], serve: _Serve) -> None:
        # whoever wakes up after so long takes nothing that arrives: its pull has failed by its own clock
        log.warning("MPI rank %d has not fetched what it asked for within %g s", serve.rank, 2 * self._timeout_s)
        for outgoing in (*(item for item, _ in serve.loading), *(item for _, item in serve.sending)):
            outgoing.release()
        self._stuck.extend(request for request, _ in serve.sending)
        del self._serves[key]
