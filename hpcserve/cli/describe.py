"""Words and counts for a status, shared by every way of showing one. Prints nothing."""

from __future__ import annotations

from hpcserve.types import Phase, Status, WorkerInfo, WorkerState


def worker_state(worker: WorkerInfo) -> str:
    """Return the state with its reason, such as `pending (Resources)`, `READY` or `stopped (told: renewed)`."""
    word = "READY" if worker.state is WorkerState.READY else str(worker.state)
    if worker.is_silent:
        word = f"{word}, silent"
    cause = None if worker.cause is None else worker.cause.replace("_", " ")
    why = ": ".join(words for words in (cause, worker.detail) if words)
    return f"{word} ({why})" if why else word


def num_ready(status: Status) -> int:
    """Return how many workers take requests."""
    return sum(worker.state is WorkerState.READY for worker in status.workers)


def is_complete(status: Status) -> bool:
    """Return whether every wanted worker takes requests."""
    return num_ready(status) >= sum(status.wanted.values())


def one_line(status: Status) -> str:
    """Return the deployment in one line: phase, workers, requests."""
    running = sum(load.num_running for load in status.load.values())
    waiting = status.num_waiting + sum(load.num_waiting for load in status.load.values())
    return f"{headline(status)}, {running} running, {waiting} waiting"


def headline(status: Status) -> str:
    """Return the phase and how far the workers are."""
    return f"{status.name}: {status.phase}, {num_ready(status)} of {sum(status.wanted.values())} workers READY"


def unfinished(status: Status) -> str:
    """Return which workers are in which state, for a deployment that does not come up."""
    states = [f"{worker.worker} {worker_state(worker)}" for worker in status.workers]
    return ", ".join(states) or "no worker was started"


def why_hopeless(status: Status) -> str | None:
    """Return why a deployment that comes up never will, or None while it may.

    It is hopeless when the head says so, and when as many workers as are wanted exist and all of them failed: what is
    wrong with every one of them is wrong with their replacements too.
    """
    if status.phase in (Phase.FAILED, Phase.STOPPED):
        return status.detail or f"the head gave up; {unfinished(status)}"
    failed = [worker for worker in status.workers if worker.state is WorkerState.FAILED]
    if failed and len(failed) == len(status.workers) >= sum(status.wanted.values()):
        return f"every worker failed; {failed[0].worker}: {failed[0].detail or 'no reason given'}"
    return None
