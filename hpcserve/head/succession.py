"""A worker near its end and the one that follows it: who is due, and the handing over.

By what rules is `renewal.py`'s; jobs are launched by the reconciler, for whom a successor is a job like any other.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable

from hpcserve.comm.protocol import Command
from hpcserve.config.models import Config
from hpcserve.head.burial import END_S, Burial
from hpcserve.head.launcher import Launcher
from hpcserve.head.renewal import Renewal
from hpcserve.head.roster import Roster
from hpcserve.head.slots import Held, Slot
from hpcserve.types import EndCause, WorkerId, WorkerState

log = logging.getLogger(__name__)

_PENDING_S = 15.0  # Slurm may take that long to start a job that has room
_NO_ROOM = re.compile("Resources|QOS|Assoc")  # reasons of squeue(1); with "Priority" others would take the room


class Succession:
    """Acts on one slot at a time."""

    def __init__(
        self,
        config: Config,
        cluster_kind: str,
        roster: Roster,
        renewal: Renewal,
        burial: Burial,
        launcher: Launcher,
        *,
        tell: Callable[[WorkerId, Command], None],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._drain_s = config.cluster.drain_timeout_s
        self._has_ends = cluster_kind == "slurm" and config.renewal.enabled  # an allocation ends as a whole
        self._roster = roster
        self._renewal = renewal
        self._burial = burial
        self._launcher = launcher
        self._tell = tell
        self._wall = wall

    def is_due(self, slot: Slot) -> bool:
        """Whether something is to be done about the end of a slot's worker, which was READY and was told nothing."""
        held = slot.job
        if not self._has_ends or held is None or held.ready_since is None or held.was_told:
            return False
        now = self._wall()
        return self._renewal.is_due(held.record, now) or self._renewal.must_leave(held.record, now)

    def hand_over(self, slot: Slot) -> bool:
        """Have a worker that is due leave, if its successor is READY or time is up; True if the successor took over."""
        old, successor = slot.job, slot.successor
        if old is None:
            return False
        if successor is None or not self._roster.is_ready(successor.worker):
            if self._renewal.must_leave(old.record, self._wall()):
                log.warning("%s has to leave before its successor is READY", old.worker)
                self._have_leave(old)
            return False
        log.info("%s takes over from %s", successor.worker, old.worker)
        self._dismiss(slot, old, "renewed")
        return True

    def make_room(self, slots: Iterable[Slot]) -> bool:
        """Where successors pend for want of room have one worker leave for them; True if one does.

        Whose successor then starts is Slurm's choice; when that one is READY its own predecessor leaves, which makes
        room for the next. So one at a time is enough, and no pool loses its only worker.
        """
        held = list(slots)
        if self._burial.records or not all(slot.job and self._roster.is_ready(slot.job.worker) for slot in held):
            return False
        sizes = Counter(slot.pool for slot in held)
        stuck = [slot for slot in held if sizes[slot.pool] > 1 and self.is_due(slot) and self._lacks_room(slot)]
        if not stuck:
            return False
        slot = min(stuck, key=_ends_at)
        assert slot.job is not None
        log.warning("%s leaves early: successors have no room beside their predecessors", slot.job.worker)
        self._dismiss(slot, slot.job, "made room for successors")
        return True

    async def learn(self, slot: Slot) -> None:
        """Ask the cluster how long a successor would wait in the queue, while too few have waited to know it."""
        held = slot.job
        if not self._has_ends or held is None or held.record.ends_at is None:
            return
        if self._renewal.needs_guess(slot.pool):
            wait_s = await self._launcher.estimate_wait_s(slot.pool)
            self._renewal.guess(slot.pool, wait_s or 0.0)

    def _lacks_room(self, slot: Slot) -> bool:
        """Whether the successor has been pending for a while, for a reason that the old worker's leaving may lift."""
        info = None if slot.successor is None else self._roster.get(slot.successor.worker)
        if slot.successor is None or info is None or info.state is not WorkerState.PENDING:
            return False
        waited_s = self._wall() - slot.successor.record.submitted_at
        return waited_s > _PENDING_S and _NO_ROOM.search(info.detail) is not None

    def _dismiss(self, slot: Slot, old: Held, why: str) -> None:
        slot.release(old)
        patience_s = self._have_leave(old) - self._wall() + END_S
        self._burial.take(old.record, patience_s=patience_s, cause=EndCause.TOLD, detail=why, was_told=True)

    def _have_leave(self, held: Held) -> float:
        leave_at = self._renewal.leave_at(held.record, self._wall(), self._drain_s)
        held.was_told = True
        self._tell(held.worker, Command(op="stop", leave_at=leave_at))
        return leave_at


def _ends_at(slot: Slot) -> float:
    end = None if slot.job is None else slot.job.record.ends_at
    return math.inf if end is None else end
