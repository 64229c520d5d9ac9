"""A worker near its end and the one that follows it: who is due, and the handing over.

By what rules is `renewal.py`'s; jobs are launched by the reconciler, for whom a successor is a job like any other.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from hpcserve.comm.protocol import Command
from hpcserve.config.models import Config
from hpcserve.head.burial import END_S, Burial
from hpcserve.head.launcher import Launcher
from hpcserve.head.renewal import Renewal
from hpcserve.head.roster import Roster
from hpcserve.head.slots import Held, Slot
from hpcserve.types import EndCause, WorkerId

log = logging.getLogger(__name__)


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
        slot.release(old)
        leave_at = self._have_leave(old)
        patience_s = leave_at - self._wall() + END_S
        self._burial.take(old.record, patience_s=patience_s, cause=EndCause.TOLD, detail="renewed", was_told=True)
        return True

    async def learn(self, slot: Slot) -> None:
        """Ask the cluster how long a successor would wait in the queue, while too few have waited to know it."""
        held = slot.job
        if not self._has_ends or held is None or held.record.ends_at is None:
            return
        if self._renewal.needs_guess(slot.pool):
            wait_s = await self._launcher.estimate_wait_s(slot.pool)
            self._renewal.guess(slot.pool, wait_s or 0.0)

    def _have_leave(self, held: Held) -> float:
        leave_at = self._renewal.leave_at(held.record, self._wall(), self._drain_s)
        held.was_told = True
        self._tell(held.worker, Command(op="stop", leave_at=leave_at))
        return leave_at
