"""Jobs that no head has on record: submitted in the instant in which one died."""

from __future__ import annotations

import asyncio
import logging
import re
import time

from hpcserve.cluster import Cluster
from hpcserve.cluster.strays import find_jobs
from hpcserve.errors import ClusterError
from hpcserve.records import JobRecord
from hpcserve.state import StateDir
from hpcserve.types import Role, WorkerId

log = logging.getLogger(__name__)

_LOOK_S = 5.0
_WATCH_S = 60.0  # a submission that was under way when the head died may come to Slurm as late as this


async def find_strays(kind: str, state: StateDir) -> list[JobRecord]:
    """Return the jobs of this deployment that exist and are on nobody's record. Raises `ClusterError`."""
    found = await find_jobs(kind, state.path)
    known = {record.job_id for record in state.read_jobs()}
    records = (_record(worker, job_id, kind) for job_id, worker in found.items() if job_id not in known)
    return [record for record in records if record is not None]


async def end_late_ones(cluster: Cluster, state: StateDir) -> None:
    """For a while, end jobs that turn up unrecorded, twice in a row: their slots have others by now."""
    deadline = time.monotonic() + _WATCH_S
    seen: set[str] = set()
    while time.monotonic() < deadline:
        await asyncio.sleep(_LOOK_S)
        looked_at = time.monotonic()
        try:
            strays = {record.job_id for record in await find_strays(cluster.kind, state)}
            if late := strays & seen:
                log.warning("ending jobs that an earlier head submitted and did not note: %s", ", ".join(sorted(late)))
                for job_id in late:
                    cluster.adopt(job_id)
                await cluster.cancel(late)
            seen = strays
        except ClusterError as err:
            log.warning("the cluster did not answer: %s", err.message)
            deadline += time.monotonic() - looked_at + _LOOK_S  # it has not been watched meanwhile


def _record(worker: WorkerId, job_id: str, kind: str) -> JobRecord | None:
    """Return what a head would have noted; None for what is no worker's name."""
    match = re.fullmatch(r"([a-z]+)-(\d+)-[0-9a-f]+", worker)
    if match is None or match[1] not in set(Role):
        return None
    pool = match[1]
    return JobRecord(
        worker=worker,
        pool=pool,
        role=Role(pool),
        job_id=job_id,
        cluster=kind,
        index=int(match[2]),
        submitted_at=time.time(),
    )
