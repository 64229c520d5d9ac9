"""Which cluster a configuration means."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Literal

from hpcserve.cluster.protocol import Cluster
from hpcserve.config.models import Config

_PROBE_TIMEOUT_S = 5.0


def make_cluster(config: Config, state_dir: Path) -> Cluster:
    """Return the cluster of a deployment; logs of its workers go to `<state_dir>/logs/<worker>.log`. Starts nothing."""
    if resolve_kind(config) == "local":
        from hpcserve.cluster.local import LocalCluster

        return LocalCluster(config, state_dir)
    if resolve_kind(config) == "mpi":
        from hpcserve.cluster.mpi import MpiCluster

        return MpiCluster(config, state_dir)
    from hpcserve.cluster.slurm import SlurmCluster

    return SlurmCluster(config, state_dir)


def resolve_kind(config: Config) -> Literal["local", "slurm", "mpi"]:
    """Return `cluster.kind`, with `auto` decided: Slurm where its commands exist and its controller answers."""
    if config.cluster.kind != "auto":
        return config.cluster.kind
    return "slurm" if _slurm_answers() else "local"


def _slurm_answers() -> bool:
    if not (shutil.which("sbatch") and shutil.which("sinfo")):
        return False
    try:
        probe = subprocess.run(
            ["sinfo", "--noheader", "--summarize"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PROBE_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return probe.returncode == 0
