"""A deployment as one JSON object, the same for `up --json`, `status --json` and `down --json`."""

from __future__ import annotations

from typing import Any

import msgspec

from hpcserve.state import StateDir
from hpcserve.types import Status, WorkerInfo


def as_dict(state: StateDir, status: Status) -> dict[str, Any]:
    """Return every field of the status, whether set or not, and the paths of the deployment."""
    return {
        "name": status.name,
        "phase": str(status.phase),
        "model": status.model,
        "mode": status.mode,
        "policy": status.policy,
        "cluster": status.cluster,
        "endpoint": status.endpoint,
        "unix_socket": status.unix_socket,
        "key_file": str(state.key_file) if state.key_file.exists() else None,
        "dashboard": status.dashboard,
        "state_dir": str(state.path),
        "frontend_pid": status.frontend_pid,
        "frontend_pids": list(status.frontend_pids),
        "head_pid": status.head_pid,
        "head_host": status.head_host,
        "started_at": status.started_at,
        "wanted": status.wanted,
        "workers": [_worker(worker, status) for worker in status.workers],
        "num_waiting": status.num_waiting,
        "num_placed": status.num_placed,
        "num_backfilling": status.num_backfilling,
        "ends": {str(cause): num for cause, num in status.ends.items()},
        "excluded_nodes": status.excluded_nodes,
        "plan": status.plan,
        "warnings": list(status.warnings),
        "detail": status.detail,
    }


def _worker(worker: WorkerInfo, status: Status) -> dict[str, Any]:
    load = status.load.get(worker.worker)
    return {
        "id": worker.worker,
        "pool": worker.pool,
        "role": str(worker.role),
        "state": str(worker.state),
        "job_id": worker.job_id,
        "host": worker.host,
        "pid": worker.pid,
        "address": worker.address,
        "ends_at": worker.ends_at,
        "cause": None if worker.cause is None else str(worker.cause),
        "is_silent": worker.is_silent,
        "detail": worker.detail,
        "engine": _every_field(worker.engine),
        "load": _every_field(load),
    }


def _every_field(value: msgspec.Struct | None) -> dict[str, Any] | None:
    """Return set and unset fields alike; msgspec itself would leave out defaults."""
    if value is None:
        return None
    fields = {name: getattr(value, name) for name in value.__struct_fields__}
    return {name: _every_field(each) if isinstance(each, msgspec.Struct) else each for name, each in fields.items()}
