"""This process's place in an MPI world: mpi4py is imported and started here, and only when asked for.

MPI can be started once in a process, so this is the one thing that a process has one of. It must not be started in a
child of a rank: the library aborts there.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import time
import uuid
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from hpcserve.errors import KVError

_JOIN_TIMEOUT_S = 120.0
_LIBRARIES = ("libmpi.so.40", "libmpi.so.12", "libmpi.so")
FIRST_DATA_TAG = 1024
"""Tags below are those of the control messages of endpoints."""
CUDA_OVERRIDE = "HPCSERVE_MPI_CUDA"
"""Environment variable: 1 or 0 where the library does not tell whether it reads device memory."""


@dataclass(frozen=True)
class MpiWorld:
    """All ranks that were started together, and a communicator that is hpcserve's alone."""

    mpi: Any  # the module mpi4py.MPI
    comm: Any
    id: str  # the same on all ranks, and on no other world's
    library: str  # such as "Open MPI 4.1.4"
    is_cuda_direct: bool
    endpoints: deque[int] = field(default_factory=lambda: deque(range(1, FIRST_DATA_TAG)))  # that are free
    data_tags: Iterator[int] = field(default_factory=itertools.count)

    @property
    def rank(self) -> int:
        """This process's number."""
        return int(self.comm.Get_rank())

    @property
    def size(self) -> int:
        """Number of ranks."""
        return int(self.comm.Get_size())


@cache
def join_world() -> MpiWorld:
    """Return the world; starts MPI the first time. All ranks must come here once; the first come wait for the last.

    Raises `KVError` where mpi4py or MPI is missing or has no threads, or if not all ranks come within two minutes.
    """
    mpi = _start()
    duplicate, request = mpi.COMM_WORLD.Idup()
    _wait(mpi, request)
    name = bytearray(uuid.uuid4().bytes)
    _wait(mpi, duplicate.Ibcast([name, mpi.BYTE], root=0))
    library = " ".join(str(mpi.Get_library_version()).split(",")[0].split()).replace("Open MPI v", "Open MPI ")
    return MpiWorld(
        mpi=mpi, comm=duplicate, id=bytes(name).hex(), library=library[:60], is_cuda_direct=reads_device_memory()
    )


def _start() -> Any:
    try:
        import mpi4py

        mpi4py.rc.thread_level = "multiple"
        from mpi4py import MPI
    except (ImportError, RuntimeError) as err:
        raise KVError(f"no MPI here: {err}; install hpcserve[mpi] and load your site's MPI module") from err
    if MPI.Query_thread() != MPI.THREAD_MULTIPLE:
        level = ("SINGLE", "FUNNELED", "SERIALIZED", "MULTIPLE")[
            (MPI.THREAD_SINGLE, MPI.THREAD_FUNNELED, MPI.THREAD_SERIALIZED, MPI.THREAD_MULTIPLE).index(
                MPI.Query_thread()
            )
        ]
        raise KVError(
            f"MPI was asked for MPI_THREAD_MULTIPLE and gives MPI_THREAD_{level}: this build has no threads, "
            "or somebody else in the process started MPI first; use another build, or kv.transport: nixl"
        )
    return MPI


def _wait(mpi: Any, request: Any) -> None:
    deadline = time.monotonic() + _JOIN_TIMEOUT_S
    while not request.Test():
        if time.monotonic() > deadline:
            raise KVError(f"not all {mpi.COMM_WORLD.Get_size()} MPI ranks joined within {_JOIN_TIMEOUT_S:g} s")
        time.sleep(1e-3)


def reads_device_memory() -> bool:
    """Whether the MPI library takes device memory, as far as it tells. It need not be started."""
    told = os.environ.get(CUDA_OVERRIDE) or os.environ.get("MPICH_GPU_SUPPORT_ENABLED")
    if told in ("0", "1"):
        return told == "1"
    for name in _LIBRARIES:
        try:
            return bool(ctypes.CDLL(name).MPIX_Query_cuda_support())
        except (OSError, AttributeError):
            continue
    return False
