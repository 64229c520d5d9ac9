"""The Slurm job of a head that does not run where `up` was typed: its script, and what Slurm says of it."""

from __future__ import annotations

import re
import shlex
import sys
from importlib import resources
from pathlib import Path

from hpcserve.cluster import slurm_commands
from hpcserve.cluster.protocol import JobState, JobView
from hpcserve.cluster.slurm_script import as_pattern, in_slurm_units, parse_memory_mb, setup_lines
from hpcserve.config.models import Config
from hpcserve.errors import ClusterError

_WARNING_S = 60  # SIGTERM so long before the walltime ends: streams end, then the job goes back into the queue
_TEMPLATE = "head.sbatch"


def render_head(config: Config, state_dir: Path) -> str:
    """Return the script."""
    slurm = config.cluster.slurm
    setup = setup_lines(slurm)
    filled = {
        "DIRECTIVES": "\n".join(f"#SBATCH {line}" for line in _directives(config, state_dir)),
        "SETUP": "\n".join(["", *setup, ""] if setup else [""]),
        "PYTHON": shlex.quote(slurm.python or sys.executable),
        "STATE": shlex.quote(str(state_dir)),
    }
    template = (resources.files("hpcserve.cluster") / "templates" / _TEMPLATE).read_text(encoding="utf-8")
    return re.sub(r"@([A-Z_]+)@", lambda found: filled[found[1]], template)


async def submit_head(config: Config, state_dir: Path, *options: str) -> str:
    """Submit the job and return its id. Raises `ClusterError` with sbatch's words."""
    out, _ = await slurm_commands.run_slurm("sbatch", "--parsable", *options, stdin=render_head(config, state_dir))
    job_id = out.strip().partition(";")[0]
    if not job_id.isdecimal():
        raise ClusterError(f"sbatch said {out.strip()!r}, which is no job id")
    return job_id


async def check_head(config: Config, state_dir: Path) -> None:
    """Ask sbatch whether it would take the job; nothing is submitted. Raises `ClusterError`."""
    try:
        await slurm_commands.run_slurm("sbatch", "--test-only", stdin=render_head(config, state_dir))
    except ClusterError as err:
        raise ClusterError(f"Slurm would not take the head's job: {err.message}") from err


async def look_at_head(job_id: str) -> JobView | None:
    """Return the job while it waits or runs, else None. Raises `ClusterError` where Slurm does not answer."""
    entry = (await slurm_commands.list_jobs()).get(job_id)
    return None if entry is None or entry.view.state is JobState.GONE else entry.view


async def cancel_head(job_id: str) -> None:
    """End the job. Raises `ClusterError`."""
    await slurm_commands.cancel_jobs([job_id])


async def requeue_head(config: Config, state_dir: Path, job_id: str) -> str:
    """Have the job that calls this run again later; return the id that it has then. Raises `ClusterError`.

    Where the site lets nothing be requeued, a successor is submitted that waits for the end of this one.
    """
    try:
        await slurm_commands.run_slurm("scontrol", "requeue", job_id)
    except ClusterError as err:
        if "disabled" not in err.message.lower():
            raise
        return await submit_head(config, state_dir, f"--dependency=afterany:{job_id}")
    return job_id


def _directives(config: Config, state_dir: Path) -> list[str]:
    slurm = config.cluster.slurm
    partition, walltime = slurm.head_partition or slurm.partition, slurm.head_walltime
    ours = [
        f"--job-name=head.{config.name}.hpcserve",
        f'--output="{as_pattern(state_dir / "logs" / "head.log")}"',
        "--open-mode=append",
        "--nodes=1",
        "--ntasks=1",
        f"--cpus-per-task={slurm.head_cores}",
        f"--mem={in_slurm_units(parse_memory_mb(slurm.head_memory))}",
        "--requeue",
        f"--signal=B:TERM@{_WARNING_S}",
        f"--time={walltime}" if walltime else None,
        f"--partition={partition}" if partition else None,
        f"--account={slurm.account}" if slurm.account else None,
        f"--qos={slurm.qos}" if slurm.qos and not slurm.head_partition else None,  # elsewhere it may not be good
    ]
    return [line for line in ours if line and not any(skip in f"#SBATCH {line}" for skip in slurm.skip_directives)]
