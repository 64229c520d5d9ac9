"""Submits the job of one worker, away from nodes that are excluded. When and for which slot is `reconciler.py`'s."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable

from hpcserve.cluster.protocol import Cluster, WorkerSpec
from hpcserve.errors import ClusterError
from hpcserve.head.ends import NodeBlame
from hpcserve.head.roster import Roster
from hpcserve.head.slots import Held, Slot
from hpcserve.records import JobRecord
from hpcserve.types import Role, WorkerId, WorkerInfo, WorkerState

log = logging.getLogger(__name__)

_FAR_S = 30 * 86400.0  # Slurm's word for "nobody knows": when the last job without a limit would have ended


class Launcher:
    """Launches one worker at a time."""

    def __init__(
        self, cluster: Cluster, roster: Roster, blame: NodeBlame, *, wall: Callable[[], float] = time.time
    ) -> None:
        self._cluster = cluster
        self._roster = roster
        self._blame = blame
        self._wall = wall

    async def launch(self, slot: Slot) -> Held:
        """Launch a worker for a slot. Raises `ClusterError`; then it is over, and the roster says so."""
        spec = self._spec(slot.pool, slot.index, self._role_for(slot))
        self._roster.expect(WorkerInfo(worker=spec.worker, pool=spec.pool, role=spec.role, state=WorkerState.PENDING))
        submitted_at = self._wall()
        try:
            job_id = await self._submit(spec)
        except ClusterError as err:
            self._roster.end(spec.worker, WorkerState.FAILED, err.message)
            raise
        self._roster.update_job(spec.worker, job_id=job_id)
        record = JobRecord(
            worker=spec.worker,
            pool=spec.pool,
            role=spec.role,
            job_id=job_id,
            cluster=self._cluster.kind,
            index=slot.index,
            submitted_at=submitted_at,
        )
        return Held(record)

    async def estimate_wait_s(self, pool: str) -> float | None:
        """Return for how long such a job would wait in the queue now; None: nobody knows."""
        try:
            starts_at = await self._cluster.estimate_start(self._spec(pool, 0, Role(pool)))
        except ClusterError as err:
            log.warning("the cluster does not say when a job would start: %s", err.message)
            return None
        wait_s = None if starts_at is None else starts_at - self._wall()
        return wait_s if wait_s is not None and wait_s < _FAR_S else None

    async def _submit(self, spec: WorkerSpec) -> str:
        """Submit; where nothing is left but excluded nodes, these are forgiven."""
        try:
            return await self._cluster.launch(spec)
        except ClusterError as err:
            if not spec.exclude:
                raise
            log.warning("%s; nodes are not excluded any more: %s", err.message, ", ".join(spec.exclude))
        self._blame.forgive()
        return await self._cluster.launch(
            WorkerSpec(worker=spec.worker, pool=spec.pool, role=spec.role, args=spec.args)
        )

    def _role_for(self, slot: Slot) -> Role:
        """Return the pool's role; a successor takes over the one that the planner gave to its predecessor."""
        before = None if slot.job is None else self._roster.get(slot.job.worker)
        return Role(slot.pool) if before is None else before.role

    def _spec(self, pool: str, index: int, role: Role) -> WorkerSpec:
        worker = WorkerId(f"{pool}-{index}-{secrets.token_hex(2)}")
        return WorkerSpec(worker=worker, pool=pool, role=role, exclude=tuple(sorted(self._blame.excluded)))
