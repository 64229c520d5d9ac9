"""The part of hpcserve inside the Dask scheduler: agents join as Dask workers and speak through their streams.

The plugin is the ear (announcements to the roster, cache events to the router) and the mouth (commands to agents), and
it has units of offline requests, which are Dask tasks, placed (`units.py`). The one `Router` is behind it; what it
decides for online requests is asked for over the head's channel (`service.py`).
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from distributed import SchedulerPlugin
from distributed import scheduler as scheduler_module

from hpcserve.comm.protocol import ANNOUNCE, COMMAND, PEERS, Announcement, Command
from hpcserve.head.roster import Roster
from hpcserve.head.units import UnitPlacer
from hpcserve.types import WorkerId, WorkerState

log = logging.getLogger(__name__)

_HEARTBEAT_S = 3.0  # well below `distributed.scheduler.worker-ttl`

_decode = msgspec.msgpack.Decoder(Announcement).decode


class RoutingPlugin(SchedulerPlugin):  # type: ignore[misc]
    """Connects a scheduler's workers with the roster."""

    name = "hpcserve"

    def __init__(self, roster: Roster, units: UnitPlacer | None = None) -> None:
        """Without `units` tasks are Dask's alone."""
        self._roster = roster
        self._units = units
        self._scheduler: Any = None

    async def start(self, scheduler: Any) -> None:
        """Register for what agents say. Before that an announcement would drop its worker."""
        self._scheduler = scheduler
        _have_workers_seldom_heard()
        scheduler.stream_handlers[ANNOUNCE] = self._hear
        scheduler.handlers[ANNOUNCE] = self._hear_call
        scheduler.handlers[PEERS] = self._tell_peers

    def remove_worker(self, scheduler: Any, worker: str, **_: Any) -> None:
        """Note that a Dask worker left."""
        lost = self._roster.worker_at(worker)
        self._roster.lose(worker)
        if lost is not None and self._units is not None:
            self._units.lose(scheduler, lost)

    def transition(self, key: str, start: str, finish: str, *_: Any, **__: Any) -> None:
        """Follow a task."""
        if self._units is not None:
            self._units.on_transition(self._scheduler, key, finish)

    def command(self, worker: WorkerId, command: Command) -> None:
        """Tell an agent to do something; nothing happens if it is not joined."""
        address = self._roster.dask_address(worker)
        stream = self._scheduler.stream_comms.get(address) if address else None
        if stream is not None:
            stream.send({"op": COMMAND, "payload": msgspec.msgpack.encode(command)})

    def _hear(self, worker: str, payload: bytes) -> None:
        """Take an announcement. An exception that left here would make the scheduler drop the worker."""
        try:
            announcement = _decode(payload)
            if self._roster.hear(announcement, worker):
                log.warning("cache events of %s have a gap; asking for a snapshot", announcement.worker)
                self.command(announcement.worker, Command(op="snapshot"))
            info = announcement.info
            if self._roster.is_given_up(announcement):
                log.warning("%s is back, but was given up: it has to end", announcement.worker)
                self.command(announcement.worker, Command(op="stop"))
            if info is not None and info.state is WorkerState.READY and self._units is not None:
                self._units.wake(self._scheduler)
        except Exception:
            log.exception("an announcement of %s was not understood", worker)

    async def _hear_call(self, worker: str, payload: bytes) -> None:
        self._hear(worker, payload)

    async def _tell_peers(self) -> bytes:
        return msgspec.msgpack.encode(self._roster.workers())


def _have_workers_seldom_heard() -> None:
    """Have Dask's heartbeats come every few seconds: 0.5 s, its own for a few workers, is 1 % of an agent's core.

    What workers have to say comes over their streams at once; one that ended is seen by its connection.
    """
    scheduler_module.heartbeat_interval = _heartbeat_interval


def _heartbeat_interval(num_workers: int) -> float:
    return max(_HEARTBEAT_S, num_workers / 200)
