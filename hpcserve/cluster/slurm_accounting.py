"""What the site's accounting has on a deployment's jobs. The command and what it prints; judges nothing."""

from __future__ import annotations

import getpass
import re
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime

import msgspec

from hpcserve.cluster.job_ends import parse_num_gpus
from hpcserve.cluster.slurm_commands import run_slurm
from hpcserve.errors import ClusterError

_FIELDS = ("JobIDRaw", "JobName", "ElapsedRaw", "State", "AllocTRES")
_GPUS = re.compile(r"(?:^|,)gres/gpu=(\d+)")
_SLACK_S = 60  # clocks of controller and of this host
_TIMEOUT_S = 15.0  # a receipt without it is better than none


class AccountedJob(msgspec.Struct, frozen=True, kw_only=True):
    """One job as it is billed."""

    job_id: str
    worker: str  # the first part of its name; "head" for that of the head
    elapsed_s: float
    num_gpus: int | None  # None: the site does not count them
    state: str


async def find_accounted(deployment: str, began_at: float) -> list[AccountedJob] | None:
    """Return the jobs of a deployment since a Unix time; None where there is no accounting, or it does not answer."""
    since = datetime.fromtimestamp(began_at - _SLACK_S).strftime("%Y-%m-%dT%H:%M:%S")
    command = ("sacct", "--allocations", "--noheader", "--parsable2", f"--format={','.join(_FIELDS)}")
    try:
        options = (f"--user={getpass.getuser()}", f"--starttime={since}")
        listing, _ = await run_slurm(*command, *options, timeout_s=_TIMEOUT_S)
    except ClusterError:
        return None
    return parse_accounted(listing, deployment)


async def find_gpus(job_ids: Iterable[str]) -> dict[str, int]:
    """Return the GPUs of jobs that slurmctld still remembers, by id; those of which it does not say are left out."""
    found = {}
    for job_id in job_ids:
        with suppress(ClusterError):
            record, _ = await run_slurm("scontrol", "--details", "show", "job", job_id)
            found[job_id] = parse_num_gpus(record) or 0
    return {job_id: num for job_id, num in found.items() if num}


def parse_accounted(listing: str, deployment: str) -> list[AccountedJob]:
    """Read sacct's lines; jobs of other names, and those that never ran, are left out."""
    jobs = []
    for line in listing.splitlines():
        row = dict(zip(_FIELDS, line.split("|"), strict=False))
        name = row.get("JobName", "")
        if not name.endswith(f".{deployment}.hpcserve") or not row.get("ElapsedRaw", "").isdecimal():
            continue
        gpus = _GPUS.search(row.get("AllocTRES", ""))
        if int(row["ElapsedRaw"]):
            jobs.append(
                AccountedJob(
                    job_id=row["JobIDRaw"],
                    worker=name.removesuffix(f".{deployment}.hpcserve"),
                    elapsed_s=float(row["ElapsedRaw"]),
                    num_gpus=int(gpus.group(1)) if gpus else None,
                    state=row.get("State", ""),
                )
            )
    return jobs
