"""Jobs and processes of a deployment, found without its records: a head may die between a launch and its note.

They are told by their log, which is in the state directory, or by their command line, which names it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from hpcserve.cluster import slurm_commands
from hpcserve.cluster.command import AGENT_MODULE
from hpcserve.records import Proc
from hpcserve.types import WorkerId

_WIDTHS = {"JobID": 24, "StdOut": 1024}


async def find_jobs(kind: str, state_dir: Path) -> dict[str, WorkerId]:
    """Return the workers that wait or run, by job id. Raises `ClusterError` where Slurm does not answer."""
    if kind == "slurm":
        listed, _ = await slurm_commands.run_slurm(
            "squeue",
            "--noheader",
            f"--user={os.getuid()}",
            "--states=PENDING,CONFIGURING,RUNNING,SUSPENDED",
            "--Format=" + ",".join(f"{name}:{width}" for name, width in _WIDTHS.items()),
        )
        return parse_logs(listed, state_dir)
    return dict(_processes(state_dir)) if kind == "local" else {}


def parse_logs(listing: str, state_dir: Path) -> dict[str, WorkerId]:
    """Read squeue's job ids and log files; jobs with logs elsewhere, and the head's own, are left out."""
    found = {}
    for line in listing.splitlines():
        job_id, log = line[: _WIDTHS["JobID"]].strip(), Path(line[_WIDTHS["JobID"] :].strip())
        if log.parent == state_dir / "logs" and log.stem != "head":
            found[job_id] = WorkerId(log.stem)
    return found


def _processes(state_dir: Path) -> Iterator[tuple[str, WorkerId]]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        pid = int(path.parent.name)
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
            is_leader = os.getsid(pid) == pid  # not a child that was forked
            worker = _worker_of(words, state_dir)
            if is_leader and worker is not None:
                proc = Proc.of(pid)
                yield f"{proc.pid}:{proc.start_time}", worker
        except (OSError, ProcessLookupError):
            continue


def _worker_of(words: list[str], state_dir: Path) -> WorkerId | None:
    following = dict(pairwise(words))
    if AGENT_MODULE not in words or following.get("--state-dir") != str(state_dir):
        return None
    name = following.get("--name")
    return None if name is None else WorkerId(name)
