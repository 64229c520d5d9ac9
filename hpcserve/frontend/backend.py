"""What the frontend needs from the rest of hpcserve: something that runs one sequence, and the newest status."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from hpcserve.types import Caller, EngineOutput, EngineRequest, Phase, Status, WorkerInfo, WorkerState

OnOutput = Callable[[EngineOutput], None]


class Backend(Protocol):
    """Runs requests somewhere. Both methods are called on the event loop."""

    async def run(self, request: EngineRequest, on_output: OnOutput, caller: Caller) -> None:
        """Run one sequence of `caller` to its end, and return after the output that has the finish reason.

        `on_output` is called for every delta, on the event loop and without a task switch; it does not block and does
        not raise. Cancelling the task aborts the request in the engine. Raises `Unavailable` when no worker can take
        it, `EngineError` when the engine failed on it, and `BadRequest` when the engine refuses it as written.
        """
        ...

    def status(self) -> Status:
        """Return the newest known phase, workers and load. Cheap: called for every request."""
        ...


def ready_workers(status: Status) -> list[WorkerInfo]:
    """Return the workers that take requests and have told what they run."""
    return [each for each in status.workers if each.state is WorkerState.READY and each.engine is not None]


def known_workers(status: Status) -> list[WorkerInfo]:
    """Return the workers that requests are checked against: the ready ones.

    Where there are none and a request has some started, those that were there before: the next will be like them.
    """
    ready = ready_workers(status)
    return ready if ready or not status.wakes else [each for each in status.workers if each.engine is not None]


def why_not_ready(status: Status) -> str | None:
    """Return why no request can be served now, or None when one can."""
    if status.phase in (Phase.DRAINING, Phase.STOPPED, Phase.FAILED):
        return f"the deployment is {status.phase}" + (f": {status.detail}" if status.detail else "")
    if not known_workers(status):
        return f"no worker is ready yet ({_states(status)})"
    if status.phase is not Phase.SERVING:
        return f"the deployment is {status.phase} ({_states(status)})"
    return None


def context_length(status: Status) -> int:
    """Return how many tokens, prompt and output together, every worker that may get a request can hold.

    Needs one that is known.
    """
    return min(each.engine.max_model_len for each in known_workers(status) if each.engine is not None)


def _states(status: Status) -> str:
    counts: dict[str, int] = {}
    for worker in status.workers:
        counts[worker.state] = counts.get(worker.state, 0) + 1
    return ", ".join(f"{count} {state}" for state, count in counts.items()) or "no worker has been started"
