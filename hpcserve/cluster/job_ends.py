"""Why a job ended, read from what a cluster says of it. Pure; the commands are `slurm_commands`'s."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from hpcserve.cluster.command import describe_exit
from hpcserve.cluster.protocol import JobEnd, JobState, JobView
from hpcserve.cluster.slurm_output import parse_time
from hpcserve.types import EndCause

SACCT_FIELDS = ("JobIDRaw", "State", "ExitCode", "NodeList", "End", "Reason", "AllocTRES")

_CAUSES = {
    "BOOT_FAIL": EndCause.NODE_FAILURE,
    "CANCELLED": EndCause.CANCELLED,
    "COMPLETED": EndCause.UNKNOWN,  # by itself: who had it end, the head knows better
    "DEADLINE": EndCause.WALLTIME,
    "FAILED": EndCause.FAILED,
    "NODE_FAIL": EndCause.NODE_FAILURE,
    "OUT_OF_MEMORY": EndCause.OUT_OF_MEMORY,
    "PREEMPTED": EndCause.PREEMPTED,
    "REQUEUED": EndCause.PREEMPTED,
    "TIMEOUT": EndCause.WALLTIME,
}
_NODE_REASONS = re.compile(r"prolog|launch_?failure|launch_failed|node_?down|node_?fail", re.IGNORECASE)
_PAIR = re.compile(r"(?:^|\s)([A-Za-z_:/]+)=(\S*)")
_GPUS = re.compile(r"(?:gres/gpu=|(?:^|\s)JOB_GRES=\S*?gpu(?::[a-z]\w*)?:)(\d+)")


def read_ends(views: Mapping[str, JobView], job_ids: Iterable[str]) -> dict[str, JobEnd]:
    """Return the ends of those that are gone, by the words of their views: all there is without Slurm."""
    gone = (views[job] for job in job_ids if job in views and views[job].state is JobState.GONE)
    return {view.job_id: JobEnd(cause=cause_of(view.reason), detail=view.reason, node=view.host) for view in gone}


def cause_of(words: str) -> EndCause:
    """Return the cause that a `JobView.reason` of a job that is gone stands for."""
    if words.startswith("FAILED: killed by"):
        return EndCause.KILLED
    return _CAUSES.get(re.split(r"[^A-Z_]", words, maxsplit=1)[0], EndCause.UNKNOWN)


def parse_job_record(record: str) -> JobEnd | None:
    """Read the output of `scontrol --details show job ID`; None while the job has not ended for good."""
    facts = dict(_PAIR.findall(record))
    state, was_preempted = facts.get("JobState", ""), parse_time(facts.get("PreemptTime", "")) is not None
    if state == "COMPLETING":  # how it ended it says only when its node is free again, but for this
        return None if not was_preempted else _end(facts, EndCause.PREEMPTED, "PREEMPTED", record)
    if state not in _CAUSES:
        return None
    words = _words(state, facts.get("ExitCode", ""), facts.get("Reason", ""))
    if was_preempted and state not in ("NODE_FAIL", "OUT_OF_MEMORY"):
        return _end(facts, EndCause.PREEMPTED, f"PREEMPTED, then {words}" if state != "PREEMPTED" else words, record)
    cause = cause_of(words)  # a batch shell that was killed is a "JobLaunchFailure", too
    is_nodes = cause is EndCause.FAILED and _NODE_REASONS.search(facts.get("Reason", ""))
    return _end(facts, EndCause.NODE_FAILURE if is_nodes else cause, words, record)


def parse_accounting(listing: str) -> dict[str, JobEnd]:
    """Read `sacct --allocations --noheader --parsable2 --format=SACCT_FIELDS`, by job id; without those that run."""
    ends = {}
    for line in listing.splitlines():
        row = dict(zip(SACCT_FIELDS, line.split("|"), strict=False))
        state = row.get("State", "").split(" ")[0]  # "CANCELLED by 1000"
        if state in _CAUSES:
            words = _words(state, row.get("ExitCode", ""), row.get("Reason", ""))
            facts = {"NodeList": row.get("NodeList", ""), "EndTime": row.get("End", "")}
            ends[row["JobIDRaw"]] = _end(facts, cause_of(words), words, row.get("AllocTRES", ""))
    return ends


def _end(facts: Mapping[str, str], cause: EndCause, words: str, record: str) -> JobEnd:
    node = facts.get("NodeList") or facts.get("BatchHost") or ""
    return JobEnd(
        cause=cause,
        detail=words,
        node=None if node in ("", "(null)", "None assigned") else node,
        ended_at=parse_time(facts.get("EndTime", "")),
        num_gpus=parse_num_gpus(record),
    )


def parse_num_gpus(record: str) -> int | None:
    """Return the GPUs that a job was given, from scontrol's details or sacct's AllocTRES; None: it does not say."""
    found = _GPUS.search(record)
    return int(found.group(1)) if found else None


def _words(state: str, exit_code: str, reason: str) -> str:
    """Return the words of `JobView.reason` for an exit code such as `3:0`: status, then signal."""
    code, _, signal_number = exit_code.partition(":")
    if state == "FAILED" and code.isdecimal() and signal_number.isdecimal() and (int(code) or int(signal_number)):
        return describe_exit(code=int(code), signal_number=int(signal_number))
    is_said = reason not in ("", "None", "NonZeroExitCode")
    return f"{state}: {reason}" if is_said else state
