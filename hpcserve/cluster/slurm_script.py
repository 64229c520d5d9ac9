"""The job script of one worker, written by dask-jobqueue's `SLURMJob`. Submits nothing.

Everything a site can ask for is in our own configuration, and dask-jobqueue gets all of it from there: a user's
`jobqueue.yaml` is not read, so that the same configuration means the same job everywhere.
"""

from __future__ import annotations

import math
import re
import shlex
import signal
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from hpcserve.cluster.command import SCHEDULER, agent_options, log_file
from hpcserve.cluster.protocol import WorkerSpec
from hpcserve.config.models import Config, SlurmConfig

_WARNING_S = 60  # SIGTERM this long before the walltime ends, where nobody else sees to it; it may come 60 s earlier
_AFTER_LEAVING_S = 10  # the head has a worker leave before; Slurm's warning is for when there is no head
_DASK_SECTION = "hpcserve"  # of dask's own configuration, in place of the user's "slurm"
_DASK_KEYS = (
    "name", "cores", "memory", "processes", "python", "interface", "death-timeout", "local-directory", "extra",
    "worker-command", "worker-extra-args", "shebang", "queue", "account", "walltime", "env-extra",
    "job-script-prologue", "job-cpu", "job-mem", "job-extra", "job-extra-directives", "job-directives-skip",
    "log-directory",
)  # fmt: skip


def make_job(config: Config, state_dir: Path, spec: WorkerSpec, agent_module: str) -> Any:
    """Return the `SLURMJob` that `start()` would submit."""
    slurm = config.cluster.slurm
    memory_mb = parse_memory_mb(slurm.memory) if slurm.memory else None
    import_dask_jobqueue()
    import dask
    from dask_jobqueue.slurm import SLURMJob

    with dask.config.set({f"jobqueue.{_DASK_SECTION}": dict.fromkeys(_DASK_KEYS)}):
        return SLURMJob(
            scheduler=SCHEDULER,
            name=spec.worker,
            config_name=_DASK_SECTION,
            job_name=f"{spec.worker}.{config.name}.hpcserve",  # squeue shows the first eight letters
            cores=slurm.cores,
            processes=1,
            memory=f"{memory_mb or 0}MiB",
            job_mem=in_slurm_units(memory_mb or 0),
            queue=slurm.partition,
            account=slurm.account,
            walltime=slurm.walltime,
            shebang="#!/usr/bin/env bash",
            # exec: the agent takes the place of the batch shell, to which Slurm sends its signals.
            python=f"exec {shlex.quote(slurm.python or sys.executable)}",
            worker_command=agent_module,
            worker_extra_args=[shlex.quote(option) for option in agent_options(spec, state_dir)],
            job_script_prologue=setup_lines(slurm),
            job_directives_skip=[*slurm.skip_directives, *([] if memory_mb else ["--mem="])],
            job_extra_directives=_directives(config, log_file(state_dir, spec), spec),
        )


def import_dask_jobqueue() -> None:
    """Import dask-jobqueue without its side effect: it sets a SIGINT handler, for which it needs the main thread."""
    with mock.patch.object(signal, "signal"):
        import dask_jobqueue  # noqa: F401


def parse_memory_mb(text: str) -> int:
    """Read a size such as 64GB, in Slurm's sense of powers of 1024, into MiB, rounded up."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kKMGT])i?B?", text)
    if match is None:
        raise ValueError(f"{text!r} is no memory size")
    return math.ceil(float(match.group(1)) * 1024.0 ** ("KMGT".index(match.group(2).upper()) - 1))


def gpu_directive(slurm: SlurmConfig) -> str | None:
    """Return how GPUs are asked for, or None where they are not."""
    if not slurm.requested_gpus:
        return None
    amount = f"{slurm.gpu_type}:{slurm.requested_gpus}" if slurm.gpu_type else str(slurm.requested_gpus)
    return f"--gres=gpu:{amount}" if slurm.gpu_request == "gres" else f"--{slurm.gpu_request}={amount}"


def _directives(config: Config, log: Path, spec: WorkerSpec) -> list[str]:
    """Return our lines, less the skipped ones, and the user's, which come last because the last one counts."""
    slurm = config.cluster.slurm
    ours = [
        f'--output="{as_pattern(log)}"',
        "--no-requeue",  # what ended is replaced by the reconciler, under a name of its own
        f"--signal=B:TERM@{_warning_s(config)}",
        "--exclusive" if slurm.exclusive else None,  # comes with all GPUs and cores of the node
        gpu_directive(slurm),
        f"--qos={slurm.qos}" if slurm.qos else None,
        f'--constraint="{slurm.constraint}"' if slurm.constraint else None,
        f"--exclude={','.join(spec.exclude)}" if spec.exclude else None,
    ]
    kept = [line for line in ours if line and not any(skip in f"#SBATCH {line}" for skip in slurm.skip_directives)]
    return kept + [line.removeprefix("#SBATCH").strip() for line in slurm.extra_directives]


def _warning_s(config: Config) -> int:
    return round(config.renewal.leave_s) + _AFTER_LEAVING_S if config.renewal.enabled else _WARNING_S


def setup_lines(slurm: SlurmConfig) -> list[str]:
    """Return the lines before the agent. A batch shell is no login shell, so `module` may have to be defined first."""
    define = ["type module > /dev/null 2>&1 || source /etc/profile"] if slurm.modules else []
    return [*define, *(f"module load {shlex.quote(module)} || exit 1" for module in slurm.modules), *slurm.prologue]


def as_pattern(path: Path | str) -> str:
    """Escape what sbatch would replace in a file name, and what would end the quotes."""
    return str(path).replace("%", "%%").replace("\\", "\\\\").replace('"', '\\"')


def in_slurm_units(memory_mb: int) -> str:
    """Write a size as sbatch takes it."""
    return f"{memory_mb // 1024}G" if memory_mb and memory_mb % 1024 == 0 else f"{memory_mb}M"
