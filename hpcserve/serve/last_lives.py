"""Writes down the lives of workers that ended without a head, which does that otherwise."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence

from hpcserve.cluster.protocol import JobEnd
from hpcserve.records import JobRecord
from hpcserve.state import StateDir
from hpcserve.types import EndCause
from hpcserve.worker_log import WorkerLife, WorkerLog


def write_last_lives(
    state: StateDir, records: Sequence[JobRecord], ended_by_us: Collection[str], ends: Mapping[str, JobEnd]
) -> None:
    """Note jobs on record that no head has noted. `ended_by_us` are ids, `ends` what the cluster says, by id."""
    log, now = WorkerLog(state), time.time()
    noted = {life.job_id for life in log.read()}
    gpus = state.read_config().cluster.slurm.requested_gpus
    for record in records:
        if record.job_id in noted:
            continue
        end = ends.get(record.job_id, JobEnd(cause=EndCause.UNKNOWN))
        is_ours = record.job_id in ended_by_us
        log.append(
            WorkerLife(
                worker=record.worker,
                pool=record.pool,
                cluster=record.cluster,
                job_id=record.job_id,
                submitted_at=record.submitted_at,
                started_at=record.started_at,
                ready_at=record.ready_at,
                ended_at=end.ended_at or now,
                cause=EndCause.TOLD if is_ours else end.cause,
                detail="taken down without a head" if is_ours else end.detail,
                node=end.node or record.node,
                num_gpus=(gpus or end.num_gpus or 0) if record.cluster == "slurm" else 0,
            )
        )
