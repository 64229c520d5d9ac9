"""Slurm's commands as coroutines, bounded in time, failures translated. `slurm_output` reads what they print."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress

from hpcserve.cluster.job_ends import SACCT_FIELDS, parse_accounting, parse_job_record
from hpcserve.cluster.protocol import JobEnd
from hpcserve.cluster.slurm_output import (
    NODES_FORMAT,
    QUEUE_FORMAT,
    Partition,
    QueueEntry,
    parse_partitions,
    parse_queue,
    parse_start_estimate,
    plain_words,
)
from hpcserve.errors import ClusterAway, ClusterError
from hpcserve.types import EndCause

_TIMEOUT_S = 30.0
# Unix seconds, whatever the cluster's time zone is (squeue(1), SLURM_TIME_FORMAT).
_ENVIRONMENT = {"SLURM_TIME_FORMAT": "%s", "LC_ALL": "C"}
_PREFERENCES = ("SQUEUE_", "SINFO_", "SCANCEL_")  # a user's own filters and questions

_NO_CONFIG = "Could not establish a configuration source"  # neither a slurm.conf nor a server that gives one
_AWAY = ("unable to contact slurm controller", "socket timed out", "zero bytes were transmitted")
_ALREADY_GONE = ("invalid job id", "already completing or completed", "not pending", "not running")


async def run_slurm(*command: str, stdin: str = "", timeout_s: float = _TIMEOUT_S) -> tuple[str, str]:
    """Run one of Slurm's commands and return its output and error output.

    Raises `ClusterError` if it is not there or says no, and of these `ClusterAway` if Slurm does not answer.
    """
    with tempfile.TemporaryFile() as given:  # no pipe: a command that ends without reading it would break one
        given.write(stdin.encode())
        given.seek(0)
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=given,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=_environment(),
            )
        except FileNotFoundError as err:
            raise no_slurm(command[0]) from err
    try:
        async with asyncio.timeout(timeout_s):
            out, problem = await process.communicate()
    except TimeoutError as err:
        raise ClusterAway(f"Slurm does not answer: {command[0]} took longer than {timeout_s:g} s") from err
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode:
        said = problem.decode(errors="replace")
        _refuse_without_config(command[0], said)
        is_away = any(words in said.lower() for words in _AWAY)
        raise (ClusterAway if is_away else ClusterError)(f"{command[0]} failed: {plain_words(said)}")
    return out.decode(errors="replace"), problem.decode(errors="replace")


def _refuse_without_config(command: str, problem: str) -> None:
    if _NO_CONFIG in problem:
        raise ClusterError(
            f"Slurm's commands are here, but {command} finds no configuration of a cluster; "
            "set SLURM_CONF, or use --cluster local"
        )


def _environment() -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_PREFERENCES)}
    return inherited | _ENVIRONMENT


def no_slurm(command: str) -> ClusterError:
    """Return the error for a machine without Slurm's commands."""
    return ClusterError(f"no Slurm here: {command} not found on PATH; use --cluster local")


async def list_jobs() -> dict[str, QueueEntry]:
    """Return this user's jobs that Slurm still remembers (some minutes after their end), by id."""
    command = ("squeue", "--noheader", f"--user={os.getuid()}", "--states=all", f"--Format={QUEUE_FORMAT}")
    out, _ = await run_slurm(*command)
    return parse_queue(out)


async def list_partitions() -> dict[str, Partition]:
    """Return every partition and its nodes, by name."""
    out, _ = await run_slurm("sinfo", "--noheader", "--all", "--Node", f"--format={NODES_FORMAT}")
    return parse_partitions(out)


async def find_ends(job_ids: Iterable[str]) -> dict[str, JobEnd]:
    """Return how jobs ended, by id: from slurmctld while it remembers them, else from the accounting if there is any.

    Those that have not ended are left out; where nobody remembers one its cause is UNKNOWN.
    """
    ends, forgotten = {}, []
    for job_id in job_ids:
        try:
            record, _ = await run_slurm("scontrol", "--details", "show", "job", job_id)
        except ClusterError as err:
            if "invalid job id" not in err.message.lower():
                raise
            forgotten.append(job_id)
            continue
        if (end := parse_job_record(record)) is not None:
            ends[job_id] = end
    return ends | (await _find_in_accounting(forgotten) if forgotten else {})


async def _find_in_accounting(job_ids: list[str]) -> dict[str, JobEnd]:
    unknown = {job_id: JobEnd(cause=EndCause.UNKNOWN, detail="not known to Slurm any more") for job_id in job_ids}
    command = ("sacct", "--allocations", "--noheader", "--parsable2", f"--format={','.join(SACCT_FIELDS)}")
    try:
        listing, _ = await run_slurm(*command, f"--jobs={','.join(job_ids)}")
    except ClusterError:  # there is none here
        return unknown
    return unknown | parse_accounting(listing)


async def estimate_start(script: str, *options: str) -> float | None:
    """Ask sbatch when it would start a job of this script, without submitting it. `options` win over the script's."""
    _, said = await run_slurm("sbatch", "--test-only", *options, stdin=script)
    return parse_start_estimate(said)


async def cancel_jobs(job_ids: Iterable[str], *options: str) -> None:
    """Run scancel; that a job has ended meanwhile is no error."""
    try:
        await run_slurm("scancel", *options, *job_ids)
    except ClusterError as err:
        if not any(words in err.message.lower() for words in _ALREADY_GONE):
            raise
