"""Sees jobs out whose worker is over: until the job has ended, too, and it is on record why.

It launches nothing; what an end means for the next worker is `reconciler.py`'s and `ends.py`'s.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from hpcserve.cluster.protocol import Cluster, JobEnd, JobState, JobView
from hpcserve.config.models import Config
from hpcserve.errors import ClusterError
from hpcserve.head.ends import QUIET, NodeBlame, verdict
from hpcserve.head.roster import Roster
from hpcserve.records import JobRecord
from hpcserve.types import EndCause, LoadReport, WorkerState
from hpcserve.worker_log import WorkerLife, WorkerLog

log = logging.getLogger(__name__)

END_S = 45.0
"""From an agent's last word, or our cancel, to the end of its job."""

_WORDS_S = 60.0  # from a job's end until the cluster has said how it ended; Slurm frees the node first
_DEAF_S = 10.0  # after it was told to leave an agent that does not begin to is sent a signal


@dataclass
class Ending:
    """One job whose worker takes nothing new. Moments are of the head's own clock."""

    record: JobRecord
    force_at: float
    cause: EndCause | None = None  # as far as the head knows it by itself
    detail: str = ""
    cancel_at: float | None = None  # then it gets a SIGTERM, unless its agent drains
    gone_at: float | None = None


class Burial:
    """Owns the jobs that are ending, the count of causes, and the log of lives."""

    def __init__(
        self,
        config: Config,
        cluster: Cluster,
        roster: Roster,
        life_log: WorkerLog,
        *,
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self._config = config
        self._cluster = cluster
        self._roster = roster
        self._life_log = life_log
        self._clock = clock
        self._wall = wall
        self._endings: dict[str, Ending] = {}
        self._known: dict[str, JobEnd] = {}
        self.counts: Counter[EndCause] = Counter()
        self.blame = NodeBlame(config.renewal.exclude_after)

    @property
    def records(self) -> list[JobRecord]:
        """The jobs that have not ended yet."""
        return [ending.record for ending in self._endings.values()]

    def recall(self, lives: Iterable[WorkerLife]) -> None:
        """Count the ends that an earlier head of this deployment has seen."""
        self.counts.update(life.cause for life in lives)

    def take(
        self,
        record: JobRecord,
        *,
        patience_s: float,
        cause: EndCause | None = None,
        detail: str = "",
        cancel: bool = False,
        was_told: bool = False,
    ) -> None:
        """See a job out: by force after `patience_s`; with a SIGTERM now, or soon if its agent was told in vain."""
        now = self._clock()
        cancel_at = now if cancel else now + _DEAF_S if was_told else None
        self._endings[record.job_id] = Ending(record, now + patience_s, cause, detail, cancel_at)

    async def look_up(self, views: Mapping[str, JobView], held: list[JobRecord]) -> None:
        """Ask the cluster how those of the held and ending jobs ended that are gone, as far as it is not known yet."""
        jobs = [record.job_id for record in [*held, *self.records]]
        gone = [job for job in jobs if job not in self._known and _is_gone(views.get(job))]
        if gone:
            try:
                self._known |= await self._cluster.ends(gone)
            except ClusterError as err:
                log.warning("the cluster does not say how jobs ended: %s", err.message)

    def end_of(self, job_id: str) -> JobEnd | None:
        """Return what the cluster said about the end of a job."""
        return self._known.get(job_id)

    async def step(self, views: Mapping[str, JobView]) -> bool:
        """Take each job one step further; True if one is gone for good."""
        before = len(self._endings)
        now = self._clock()
        for job_id, ending in list(self._endings.items()):
            if _is_gone(views.get(job_id)):
                self._try_to_bury(job_id, ending, now)
            elif now >= ending.force_at:
                await self._cluster.cancel([job_id], force=True)
            elif ending.cancel_at is not None and now >= ending.cancel_at:
                ending.cancel_at = None
                if not self._drains(ending.record):
                    await self._cluster.cancel([job_id])
        return len(self._endings) < before

    def bury_all(self, cause: EndCause) -> None:
        """Record that all that are ending have ended; what Slurm says of each may take longer than we have."""
        for job_id, ending in list(self._endings.items()):
            ending.cause = ending.cause or cause
            self._bury(job_id, ending, JobEnd(cause=EndCause.UNKNOWN))

    def _try_to_bury(self, job_id: str, ending: Ending, now: float) -> None:
        """Slurm calls a job gone while its agent still drains; the agent's word counts as long as it is heard."""
        ending.gone_at = now if ending.gone_at is None else ending.gone_at
        if self._roster.dask_address(ending.record.worker) is not None and now < ending.force_at:
            return
        end = self._known.get(job_id)
        if end is None and now - ending.gone_at < _WORDS_S:
            return
        self._bury(job_id, ending, end or JobEnd(cause=EndCause.UNKNOWN, detail="its job ended"))

    def _bury(self, job_id: str, ending: Ending, end: JobEnd) -> None:
        del self._endings[job_id]
        self._known.pop(job_id, None)
        record = ending.record
        info, now = self._roster.get(record.worker), self._wall()
        cause = verdict(ending.cause, end, info, record, now)
        detail = ending.detail or end.detail
        has_drained = info is not None and info.state is WorkerState.DRAINING
        is_quiet = cause in QUIET or has_drained
        self._roster.end(record.worker, WorkerState.STOPPED if is_quiet else WorkerState.FAILED, detail)
        self._roster.explain(record.worker, cause, detail)
        self.counts[cause] += 1
        node = end.node or record.node
        log.info("%s has ended: %s (%s)", record.worker, cause, detail)
        has_choice = self._cluster.kind == "slurm"  # elsewhere there are no other nodes
        if has_choice and node is not None and self.blame.note(node, cause, was_ready=record.ready_at is not None):
            log.warning("no more workers on %s: %s", node, self.blame.excluded[node])
        self._write(record, end, cause, detail, now)

    def _write(self, record: JobRecord, end: JobEnd, cause: EndCause, detail: str, now: float) -> None:
        load = self._roster.last_load(record.worker) or LoadReport()
        gpus = self._config.cluster.slurm.requested_gpus if record.cluster == "slurm" else 0
        self._life_log.append(
            WorkerLife(
                worker=record.worker,
                pool=record.pool,
                cluster=record.cluster,
                job_id=record.job_id,
                submitted_at=record.submitted_at,
                started_at=record.started_at,
                ready_at=record.ready_at,
                ended_at=end.ended_at or now,
                cause=cause,
                detail=detail,
                node=end.node or record.node,
                num_gpus=gpus or end.num_gpus or 0,
                busy_s=load.work.prefill_s + load.work.decode_s,
                prompt_tokens=load.prompt_tokens_total,
                generated_tokens=load.generated_tokens_total,
            )
        )

    def _drains(self, record: JobRecord) -> bool:
        info = self._roster.get(record.worker)
        return info is not None and (info.state is WorkerState.DRAINING or info.state.is_final)


def _is_gone(view: JobView | None) -> bool:
    return view is None or view.state is JobState.GONE
