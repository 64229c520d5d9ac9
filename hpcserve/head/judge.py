"""Whether a job still counts for its slot, by what the cluster, the agent and the head's own ears say. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from hpcserve.cluster.job_ends import cause_of
from hpcserve.cluster.protocol import JobEnd, JobState, JobView
from hpcserve.head.slots import Held
from hpcserve.types import EndCause, WorkerInfo, WorkerState

_LOST_S = 10.0  # an agent that left the scheduler and did not come back for so long is taken for dead
_SILENT_S = 20.0  # the same of one that is still connected: a busy interpreter may come back
_REJOIN_S = 60.0  # for agents that were READY to find a new head


@dataclass(frozen=True, kw_only=True)
class Heard:
    """For how many seconds nothing was heard of a worker, by way of its connection and of its words."""

    lost_s: float = 0.0
    silent_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A worker that takes nothing new. Whether its job is ended by force, or ends by itself."""

    is_given_up: bool = False
    cause: EndCause | None = None  # None: the cluster will say
    detail: str = ""


def judge(
    held: Held, info: WorkerInfo, view: JobView, heard: Heard, *, now: float, wall: float, start_timeout_s: float
) -> Finding | None:
    """Return why a job does not count any more; None: it does. `now` is the head's own clock, `wall` Unix time."""
    if view.state is JobState.GONE or info.state.is_final or info.state is WorkerState.DRAINING:
        return Finding()
    if heard.lost_s > _LOST_S or heard.silent_s > _SILENT_S:
        return _given_up(EndCause.SILENT, "lost: the agent does not answer")
    if view.state is JobState.PENDING:
        was_running = held.record.started_at is not None
        return _given_up(EndCause.PREEMPTED, "requeued by Slurm") if was_running else None
    if info.state is WorkerState.READY or view.started_at is None:
        return None
    if held.adopted_at is not None and held.record.ready_at is not None:
        is_late = now - held.adopted_at > _REJOIN_S
        return _given_up(EndCause.SILENT, "its agent did not come back to the new head") if is_late else None
    waited_s = wall - view.started_at if held.adopted_at is None else now - held.adopted_at
    if waited_s > start_timeout_s:
        return _given_up(EndCause.FAILED, f"not READY {waited_s:.0f} s after its job started")
    return None


def provisional_cause(info: WorkerInfo, view: JobView, end: JobEnd | None) -> EndCause | None:
    """Return what is known at once of the end of a worker that was not given up; None: the cluster has yet to say."""
    if info.state in (WorkerState.DRAINING, WorkerState.STOPPED):
        return EndCause.TOLD  # by whomever: it is not at fault
    if info.state is WorkerState.FAILED:
        return EndCause.FAILED
    if end is not None:
        return end.cause
    return None if view.reason in ("COMPLETING", "") else cause_of(view.reason)


def _given_up(cause: EndCause, detail: str) -> Finding:
    return Finding(is_given_up=True, cause=cause, detail=detail)
