"""How `mpirun` is called for processes of this machine. It does not start anything."""

from __future__ import annotations

import os


def mpirun_command(num: int) -> list[str]:
    """Return the beginning of a command line for `num` ranks on this machine, whatever its cores; Open MPI's flags."""
    as_root = ["--allow-run-as-root"] if os.getuid() == 0 else []  # Open MPI refuses root, and MPICH knows no such flag
    return ["mpirun", *as_root, "--oversubscribe", "-n", str(num)]
