"""When a worker's successor is launched: early enough to be READY before the worker's job ends. Pure.

How long that takes is learned from the waits in the queue and the load times of a pool's workers. Until there are some,
Slurm's own estimate is the guess.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from hpcserve.config.models import Config
from hpcserve.records import JobRecord
from hpcserve.worker_log import WorkerLife

NUM_TO_TRUST = 3
"""Observations of a pool that make Slurm's estimate needless."""
NOTICE_S = 10.0
"""Before it has to be gone, a worker without a successor is told so."""

_NUM_KEPT = 50  # the newest say more about the queue as it is now
_QUANTILE = 0.9
_SAFETY = 1.5  # what is longer than all that was seen comes, too
_MAX_SHARE = 0.5  # of a walltime: else workers with a short one would only renew each other


class Renewal:
    """The waits of one deployment's workers, and what follows for those that will end."""

    def __init__(self, config: Config) -> None:
        self._config = config.renewal
        self._seen: dict[str, deque[float]] = {}  # by pool: seconds from submission to READY
        self._guesses: dict[str, float] = {}  # by pool: seconds of the wait in the queue

    @property
    def is_enabled(self) -> bool:
        """Whether there are successors at all."""
        return self._config.enabled

    def learn(self, lives: Iterable[WorkerLife]) -> None:
        """Take over what earlier workers took, oldest first."""
        for life in lives:
            if life.ready_at is not None:
                self.observe(life.pool, life.ready_at - life.submitted_at)

    def observe(self, pool: str, seconds: float) -> None:
        """Take in how long a worker took from its submission to READY."""
        self._seen.setdefault(pool, deque(maxlen=_NUM_KEPT)).append(max(0.0, seconds))

    def guess(self, pool: str, wait_s: float) -> None:
        """Take in for how long Slurm says that a job would now wait in the queue."""
        self._guesses[pool] = max(0.0, wait_s)

    def needs_guess(self, pool: str) -> bool:
        """Whether too little was seen of a pool."""
        return pool not in self._guesses and len(self._seen.get(pool, ())) < NUM_TO_TRUST

    def lead_s(self, pool: str, walltime_s: float) -> float:
        """Return how long before its end a worker's successor is submitted; at most half of the walltime."""
        if self._config.lead_s is not None:
            return min(self._config.lead_s, walltime_s * _MAX_SHARE)
        return min(self._config.min_lead_s + _SAFETY * self.estimate_s(pool), walltime_s * _MAX_SHARE)

    def estimate_s(self, pool: str) -> float:
        """Return how long a worker takes from its submission to READY; 0 where nothing is known."""
        seen = sorted(self._seen.get(pool, ()))
        learned = seen[min(len(seen) - 1, int(_QUANTILE * len(seen)))] if seen else 0.0
        return learned if len(seen) >= NUM_TO_TRUST else max(learned, self._guesses.get(pool, 0.0))

    def is_due(self, record: JobRecord, now: float) -> bool:
        """Whether a worker's successor should be submitted at `now`, a Unix time."""
        if not self.is_enabled or record.ends_at is None or record.started_at is None:
            return False
        return now >= record.ends_at - self.lead_s(record.pool, record.ends_at - record.started_at)

    def leave_at(self, record: JobRecord, now: float, drain_s: float) -> float:
        """Return when a worker whose successor is READY has handed over everything: soon, and before its job's end."""
        end = now + drain_s if record.ends_at is None else min(now + drain_s, record.ends_at - self._config.leave_s)
        return max(now, end)

    def must_leave(self, record: JobRecord, now: float) -> bool:
        """Whether a worker has to be told to leave, successor or not."""
        if not self.is_enabled or record.ends_at is None:
            return False
        return now >= record.ends_at - self._config.leave_s - NOTICE_S
