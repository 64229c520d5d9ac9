"""The script of an offline batch in one Slurm allocation: `templates/offline_batch.sbatch`, filled in. Submits nothing.

The copy in the repository's `slurm/` is what `EXAMPLE` renders to; a test holds them against each other.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from importlib import resources

from hpcserve.cluster.slurm_script import as_pattern, gpu_directive, in_slurm_units, parse_memory_mb, setup_lines
from hpcserve.config.models import SlurmConfig
from hpcserve.errors import ConfigError

_WARNING_S = 120  # at most, from the signal to the end of the walltime; Slurm may send it a minute earlier
_TEMPLATE = "offline_batch.sbatch"


@dataclass(frozen=True, kw_only=True)
class BatchJob:
    """What a script is for."""

    input: str
    output: str
    options: tuple[str, ...]  # of `hpcserve batch run`
    slurm: SlurmConfig  # `gpus`, `cores` and `memory` are those of one worker
    num_nodes: int
    workers_per_node: int = 1
    gpus_per_node: int = 0
    num_tasks: int | None = None  # of an array
    launcher: str = "srun"
    requeue: bool = True
    command: str = "hpcserve"

    @property
    def log(self) -> str:
        """Where the job writes, as sbatch's pattern."""
        stem = as_pattern(self.output.removesuffix(".jsonl"))
        return f"{stem}.slurm-{'%j' if self.num_tasks is None else '%A_%a'}.log"


EXAMPLE = BatchJob(
    input="requests.jsonl",
    output="answers.jsonl",
    options=("--model", "/path/to/model"),
    slurm=SlurmConfig(exclusive=True, walltime="02:00:00"),
    num_nodes=4,
    gpus_per_node=1,
)


def render(job: BatchJob) -> str:
    """Return the script."""
    setup = setup_lines(job.slurm)
    filled = {
        "DIRECTIVES": "\n".join(f"#SBATCH {line}" for line in _directives(job)),
        "INPUT": shlex.quote(job.input),
        "OUTPUT": shlex.quote(job.output),
        "WORKERS_PER_NODE": str(job.workers_per_node),
        "LAUNCHER": job.launcher,
        "REQUEUE": str(int(job.requeue)),
        "HPCSERVE": shlex.quote(job.command),
        "OPTIONS": shlex.join(job.options),
        "SETUP": "\n".join(["", "# The environment of the ranks.", *setup, ""] if setup else [""]),
    }
    return re.sub(r"@([A-Z_]+)@", lambda found: filled[found[1]], template())


def template() -> str:
    """Return the script with `@NAMES@` in it."""
    return (resources.files("hpcserve.cluster") / "templates" / _TEMPLATE).read_text(encoding="utf-8")


def share_gpus(
    slurm: SlurmConfig, tensor_parallel: int | None, *, gpus_per_node: int | None, workers_per_node: int | None
) -> tuple[int, int]:
    """Return workers and GPUs of a node. Raises `ConfigError` where they cannot be shared out."""
    if slurm.gpu_request == "none":
        return workers_per_node or 1, 0
    per_worker = slurm.gpus if slurm.gpus is not None else tensor_parallel
    if gpus_per_node is None:
        num = workers_per_node or 1
        return num, num * (1 if per_worker is None else per_worker)
    num = workers_per_node or max(1, gpus_per_node // (per_worker or 1))
    if num * (per_worker or 1) > gpus_per_node:
        each = "a GPU each" if per_worker in (None, 1) else f"{per_worker} GPUs each"
        raise ConfigError(
            f"--gpus-per-node {gpus_per_node} is too few for {num} worker{'s' * (num != 1)} of {each} on a node"
        )
    return num, gpus_per_node


def _directives(job: BatchJob) -> list[str]:
    slurm, num = job.slurm, job.workers_per_node
    lines = [
        "--job-name=hpcserve-batch",
        f"--nodes={job.num_nodes}",
        f"--ntasks-per-node={num}",
        *(["--exclusive"] if slurm.exclusive else [f"--cpus-per-task={slurm.cores}"]),
        f"--mem={in_slurm_units(parse_memory_mb(slurm.memory) * num)}" if slurm.memory else None,
        gpu_directive(slurm.model_copy(update={"gpus": job.gpus_per_node})),
        f"--time={slurm.walltime}" if slurm.walltime else None,
        f"--partition={slurm.partition}" if slurm.partition else None,
        f"--account={slurm.account}" if slurm.account else None,
        f"--qos={slurm.qos}" if slurm.qos else None,
        f'--constraint="{slurm.constraint}"' if slurm.constraint else None,
        f"--array=0-{job.num_tasks - 1}" if job.num_tasks is not None else None,
        f'--output="{job.log}"',
        "--open-mode=append",
        f"--signal=B:USR1@{_warning_s(slurm.walltime)}",
        "--requeue" if job.requeue else "--no-requeue",
    ]
    kept = [line for line in lines if line and not any(skip in f"#SBATCH {line}" for skip in slurm.skip_directives)]
    return kept + [line.removeprefix("#SBATCH").strip() for line in slurm.extra_directives]


def _warning_s(walltime: str | None) -> int:
    """Return how long before its end the job is told: two minutes, but no more than a quarter of a short walltime."""
    if walltime is None:
        return _WARNING_S
    days, _, clock = walltime.rpartition("-")
    numbers = [int(part) for part in clock.split(":")]
    if not days and len(numbers) < 3:  # minutes, or minutes and seconds (sbatch(1)); hours are first otherwise
        numbers.insert(0, 0)
    hours, minutes, seconds = (*numbers, 0, 0)[:3]
    total_s = ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
    return min(_WARNING_S, max(1, total_s // 4))
