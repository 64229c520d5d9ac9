"""What `mpirun` and `srun` tell the processes they start: how many there are, and which one this is."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_LAUNCHERS = (  # Slurm last: what mpirun starts has its variables, too
    ("mpirun (Open MPI)", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("mpirun (PMI)", "PMI_RANK", "PMI_SIZE"),
    ("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
)
_LAUNCHERS_OWN = ("OMPI_", "PMIX_", "PMI_", "PMI2_", "MPI_LOCAL", "HYDRA_", "PRTE_", "ORTE_")
_RANK_OF_SLURM = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS")
_DEVICES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")
_BOUND_BY_LAUNCHER = ("SLURM_GPUS_PER_TASK", "SLURM_TRES_PER_TASK")

_LABEL_LETTERS = 30  # it becomes part of a deployment's name


@dataclass(frozen=True)
class Launch:
    """One process among those that were started together."""

    rank: int
    num_ranks: int
    launcher: str = "mpirun"
    label: str = "0"  # the same for all of them, another one for each start

    @property
    def num_workers(self) -> int:
        """How many can hold a worker: all but rank 0, which has the head and the driver."""
        return self.num_ranks - 1


@dataclass(frozen=True)
class Devices:
    """The GPUs that a process of this node sees."""

    variable: str
    ids: tuple[str, ...]
    is_own: bool  # whether the launcher gave them to this rank alone

    def share(self, index: int, num: int) -> str | None:
        """Return the value of the variable for one of `num` ranks on the node; None: leave it. At least one each.

        Raises `ValueError` where there are fewer devices than ranks.
        """
        if self.is_own or not self.ids:
            return None
        size = len(self.ids) // num
        if not size:
            raise ValueError(f"{len(self.ids)} GPUs for {num} workers")
        return ",".join(self.ids[index * size : (index + 1) * size])


def read_launch(environ: Mapping[str, str] | None = None) -> Launch | None:
    """Return this process's place, or None where no launcher started it: a batch script is no rank of anything."""
    environ = os.environ if environ is None else environ
    for launcher, rank, size in _LAUNCHERS:
        if environ.get(rank, "").isdigit() and environ.get(size, "").isdigit():
            return Launch(int(environ[rank]), int(environ[size]), launcher, _label(environ))
    return None


def read_devices(environ: Mapping[str, str] | None = None) -> Devices:
    """Return the GPUs that this process may use: those that it is told of, else those that the node has."""
    environ = os.environ if environ is None else environ
    is_own = any(environ.get(name) for name in _BOUND_BY_LAUNCHER)
    for variable in _DEVICES:
        if variable in environ:
            return Devices(variable, tuple(filter(None, environ[variable].split(","))), is_own)
    num = len(list(Path("/dev").glob("nvidia[0-9]*")))
    return Devices(_DEVICES[0], tuple(str(index) for index in range(num)), is_own)


def node_name(environ: Mapping[str, str] | None = None) -> str:
    """Return the name of this node as Slurm's commands take it, else the host's."""
    environ = os.environ if environ is None else environ
    return environ.get("SLURMD_NODENAME") or socket.gethostname()


def allocation_end(environ: Mapping[str, str] | None = None) -> float | None:
    """Return when the allocation ends, in Unix seconds, where Slurm says so (newer ones do)."""
    environ = os.environ if environ is None else environ
    end = environ.get("SLURM_JOB_END_TIME", "")
    return float(end) if end.isdigit() else None


def num_threads(workers_on_node: int, environ: Mapping[str, str] | None = None) -> int:
    """Return this worker's share of the node's cores: all that it may use where the launcher bound it, at least one."""
    environ = os.environ if environ is None else environ
    cores = len(os.sched_getaffinity(0))
    is_bound = environ.get("SLURM_CPU_BIND_TYPE", "").startswith(("mask", "map"))
    return cores if is_bound else max(1, cores // workers_on_node)


def without_launcher(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a child that must not take itself for a rank: MPI aborts in children of ranks."""
    return {
        name: value
        for name, value in environ.items()
        if not name.startswith(_LAUNCHERS_OWN) and name not in _RANK_OF_SLURM
    }


def _label(environ: Mapping[str, str]) -> str:
    """Name this start. The step is the last resort: ranks of mpirun see none, or that of their daemon."""
    start = environ.get("PMIX_NAMESPACE") or environ.get("OMPI_MCA_ess_base_jobid") or environ.get("SLURM_STEP_ID")
    job, life = environ.get("SLURM_JOB_ID"), environ.get("SLURM_RESTART_COUNT")  # of a requeued job: the id is the same
    words = "-".join(part for part in (job, life, start) if part) or "0"
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")[-_LABEL_LETTERS:].strip("-")
