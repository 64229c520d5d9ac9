"""What the end of a worker means: why it ended, whose fault that was, and which nodes get no more workers. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from hpcserve.cluster.protocol import JobEnd
from hpcserve.records import JobRecord
from hpcserve.types import EndCause, WorkerInfo, WorkerState

WILLED = frozenset({EndCause.TOLD, EndCause.WALLTIME, EndCause.PREEMPTED})
"""Ends that say nothing about the worker: the next one is launched at once."""
QUIET = WILLED | {EndCause.CANCELLED}
"""Ends that nobody has to look into."""
OWN_FAULTS = frozenset({EndCause.FAILED, EndCause.KILLED, EndCause.OUT_OF_MEMORY, EndCause.UNKNOWN})
"""Ends that a replacement is likely to have, too, where no worker of the pool was ever READY."""

_SLURM_KNOWS_BETTER = frozenset({EndCause.PREEMPTED, EndCause.NODE_FAILURE, EndCause.OUT_OF_MEMORY})
_NEAR_END_S = 180.0  # Slurm's warning comes up to 60 s early, and an agent that has nothing to do ends at once
_NODE_FAULTS = frozenset({EndCause.NODE_FAILURE, EndCause.SILENT, EndCause.KILLED})


def verdict(known: EndCause | None, end: JobEnd, info: WorkerInfo | None, record: JobRecord, now: float) -> EndCause:
    """Return why a worker ended.

    `known` is what the head saw or did itself, `end` what the cluster says; of some ends only the cluster can know. An
    agent that ended by itself without having been told was sent a signal: by Slurm, where its walltime was nearly over.
    """
    if end.cause in _SLURM_KNOWS_BETTER:
        return end.cause
    if known is not None:
        return known
    if end.cause is not EndCause.UNKNOWN:
        return end.cause
    if info is not None and info.state is WorkerState.FAILED:
        return EndCause.FAILED
    if record.ends_at is not None and now > record.ends_at - _NEAR_END_S:
        return EndCause.WALLTIME
    has_drained = info is not None and info.state in (WorkerState.DRAINING, WorkerState.STOPPED)
    return EndCause.KILLED if has_drained else EndCause.UNKNOWN


def is_nodes_fault(cause: EndCause, *, was_ready: bool) -> bool:
    """Whether an end speaks against the node: it failed, the worker fell silent or was killed, or it did not start."""
    return cause in _NODE_FAULTS or (cause is EndCause.FAILED and not was_ready)


@dataclass
class NodeBlame:
    """Counts the failures in a row of each node, and says which are left out of the next submissions."""

    exclude_after: int
    excluded: dict[str, str] = field(default_factory=dict)  # node -> why
    _failures: dict[str, list[EndCause]] = field(default_factory=dict)

    def note(self, node: str, cause: EndCause, *, was_ready: bool) -> bool:
        """Take in the end of a worker on a node. True if the node is excluded from now on."""
        if not is_nodes_fault(cause, was_ready=was_ready):
            if was_ready:
                self._failures.pop(node, None)
            return False
        causes = self._failures.setdefault(node, [])
        causes.append(cause)
        if len(causes) < self.exclude_after or node in self.excluded:
            return False
        self.excluded[node] = f"{len(causes)} workers in a row failed there: {', '.join(causes)}"
        return True

    def forgive(self) -> None:
        """Start anew: without these nodes there is nowhere to go."""
        self.excluded.clear()
        self._failures.clear()
