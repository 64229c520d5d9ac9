"""What Slurm's commands print, read into values. Pure. Tried with Slurm 22.05; asks for nothing newer than 20.02."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from hpcserve.cluster.command import describe_exit
from hpcserve.cluster.protocol import JobState, JobView

# Columns of squeue's --Format and their widths: fixed ones, because any separator may occur in a reason.
_COLUMNS = {
    "JobID": 24,
    "State": 24,
    "exit_code": 12,
    "StartTime": 24,
    "EndTime": 24,
    "TimeLimit": 24,
    "NodeList": 128,
    "Reason": 256,
}
QUEUE_FORMAT = ",".join(f"{name}:{width}" for name, width in _COLUMNS.items())
NODES_FORMAT = "%P|%N|%c|%m|%G"  # of sinfo: partition, node, CPUs, memory in MiB, generic resources

_PENDING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
_ENDED = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
}
_ENDING = "COMPLETING"  # the agent is gone, its node not free yet
_COMMAND_PREFIX = re.compile(
    r"^((sbatch|squeue|scancel|sinfo|slurm_load_\w+|allocation failure|error|fatal)( error)?: )+"
)


@dataclass(frozen=True, kw_only=True)
class QueueEntry:
    """One job as squeue lists it."""

    view: JobView
    is_queued: bool  # whether plain squeue would still show it


@dataclass(frozen=True, kw_only=True)
class Node:
    """One node's configured size, whatever runs on it."""

    name: str
    cpus: int
    memory_mb: int
    gpus: dict[str, int]  # by type; "" for those without


@dataclass(frozen=True, kw_only=True)
class Partition:
    """One partition."""

    name: str
    is_default: bool
    nodes: tuple[Node, ...]


def plain_words(problem: str) -> str:
    """Return a command's error output as one line, without the command's name before each of its lines."""
    lines = (_COMMAND_PREFIX.sub("", line.strip()) for line in problem.splitlines())
    return "; ".join(dict.fromkeys(filter(None, lines))) or "it gave no reason"


def parse_queue(listing: str) -> dict[str, QueueEntry]:
    """Read the output of `squeue --noheader --states=all --Format=QUEUE_FORMAT`, by job id."""
    entries = (_entry(dict(_split(line))) for line in listing.splitlines() if line.strip())
    return {entry.view.job_id: entry for entry in entries}


def parse_partitions(listing: str) -> dict[str, Partition]:
    """Read the output of `sinfo --noheader --Node --format=NODES_FORMAT`, by name."""
    nodes: dict[str, list[Node]] = {}
    for line in listing.splitlines():
        if line.strip():
            partition, name, cpus, memory, gres = line.strip().split("|", 4)
            node = Node(name=name, cpus=_number(cpus), memory_mb=_number(memory), gpus=parse_gpus(gres))
            nodes.setdefault(partition, []).append(node)
    return {
        name.removesuffix("*"): Partition(
            name=name.removesuffix("*"), is_default=name.endswith("*"), nodes=tuple(found)
        )
        for name, found in nodes.items()
    }


def parse_gpus(gres: str) -> dict[str, int]:
    """Read a node's generic resources, such as `gpu:a100:4(S:0-1),nvme:1`, into GPUs by type."""
    gpus: dict[str, int] = {}
    for match in re.finditer(r"(?:^|,)gpu(?::([^:,()]*[^:,()\d][^:,()]*))?(?::(\d+))?", gres):
        kind, num = match.group(1) or "", int(match.group(2) or 1)
        gpus[kind] = gpus.get(kind, 0) + num
    return gpus


def parse_start_estimate(said: str) -> float | None:
    """Read when a job would start from what `sbatch --test-only` says; None if it does not say."""
    match = re.search(r"to start at (\S+)", said)
    return parse_time(match.group(1)) if match else None


def parse_time(text: str) -> float | None:
    """Read a time in Unix seconds, or as ISO 8601 in local time; None for "N/A" and the like."""
    if text.isdecimal():
        return float(text) or None
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def _split(line: str) -> Iterator[tuple[str, str]]:
    start = 0
    for name, width in _COLUMNS.items():
        yield name, line[start : start + width].strip()
        start += width


def _entry(columns: dict[str, str]) -> QueueEntry:
    word = columns["State"]
    state = _state(word)
    has_started = state is not JobState.PENDING
    ends_at = None if columns["TimeLimit"] == "UNLIMITED" or not has_started else parse_time(columns["EndTime"])
    view = JobView(
        job_id=columns["JobID"],
        state=state,
        reason=_reason(word, state, columns),
        host=_unless_nothing(columns["NodeList"]) if has_started else None,
        started_at=parse_time(columns["StartTime"]) if has_started else None,
        ends_at=ends_at,
    )
    return QueueEntry(view=view, is_queued=word not in _ENDED)


def _state(word: str) -> JobState:
    """An unknown state counts as running: to take a live job for dead would launch a second one beside it."""
    if word in _PENDING:
        return JobState.PENDING
    return JobState.GONE if word in _ENDED or word == _ENDING else JobState.RUNNING


def _reason(word: str, state: JobState, columns: dict[str, str]) -> str:
    if state is JobState.GONE:
        status = int(columns["exit_code"]) if columns["exit_code"].isdecimal() else 0
        if word in ("FAILED", _ENDING) and status:
            return describe_exit(code=status >> 8, signal_number=status & 0x7F)  # a wait(2) status
        return word
    reason = _unless_nothing(columns["Reason"]) or ""
    return reason if word in ("PENDING", "RUNNING") else f"{word} {reason}".strip()


def _unless_nothing(text: str) -> str | None:
    return None if text in ("", "(null)", "N/A", "None", "n/a") else text


def _number(text: str) -> int:
    digits = re.match(r"\d+", text)
    return int(digits.group()) if digits else 0
