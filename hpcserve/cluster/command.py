"""The node agent as a program: its command line, its log and how its end is told; the same for every cluster."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from hpcserve.cluster.protocol import WorkerSpec

AGENT_MODULE = "hpcserve.agent"
SCHEDULER = (
    "by-state-dir"  # where dask-jobqueue puts an address: the agent reads the present head's from its state directory
)


def agent_options(spec: WorkerSpec, state_dir: Path) -> list[str]:
    """Return what follows the options that dask-jobqueue itself writes."""
    return ["--state-dir", str(state_dir), "--pool", spec.pool, "--role", spec.role.value, *spec.args]


def log_file(state_dir: Path, spec: WorkerSpec) -> Path:
    """Return where a worker's output goes."""
    return state_dir / "logs" / f"{spec.worker}.log"


def console_script(python: str | None = None) -> str:
    """Return the path of the `hpcserve` command beside an interpreter, by default this one."""
    return str(Path(python or sys.executable).with_name("hpcserve"))


def describe_exit(*, code: int = 0, signal_number: int = 0) -> str:
    """Say how a process ended, in Slurm's words for states."""
    if signal_number:
        known = signal_number in set(signal.Signals)
        return f"FAILED: killed by {signal.Signals(signal_number).name if known else f'signal {signal_number}'}"
    return f"FAILED: exit code {code}" if code else "COMPLETED"
