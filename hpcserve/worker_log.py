"""The lives of a deployment's workers, one JSON line each in `workers.jsonl`: for estimates, receipts and blame.

Only ended workers are here; those that may still live are in `jobs.json` (`StateDir.read_jobs`). Written by the head.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from hpcserve.state import StateDir
from hpcserve.types import EndCause, WorkerId


class WorkerLife(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One worker from its submission to its end. Times are Unix seconds; None: it did not come so far."""

    worker: WorkerId
    pool: str
    cluster: str  # "local", "slurm" or "mpi"
    job_id: str
    submitted_at: float
    started_at: float | None = None
    ready_at: float | None = None
    ended_at: float
    cause: EndCause
    detail: str = ""
    node: str | None = None
    num_gpus: int = 0
    busy_s: float = 0.0  # that its engine computed
    prompt_tokens: int = 0
    generated_tokens: int = 0


class WorkerLog:
    """Appends and reads the lives of one deployment's workers."""

    def __init__(self, state: StateDir) -> None:
        self.path: Path = state.path / "workers.jsonl"

    def append(self, life: WorkerLife) -> None:
        """Write one life down, durably."""
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(file, msgspec.json.encode(life) + b"\n")
            os.fsync(file)
        finally:
            os.close(file)

    def read(self) -> list[WorkerLife]:
        """Return all lives in the order they ended; a line that was cut off by a crash is left out."""
        try:
            lines = self.path.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        lives = []
        for line in lines:
            try:
                lives.append(msgspec.json.decode(line, type=WorkerLife))
            except msgspec.MsgspecError:
                continue
        return lives
