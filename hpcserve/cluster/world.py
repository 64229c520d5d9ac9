"""MPI's world around a rank whose KV travels by MPI. Every rank enters and leaves it, rank 0 too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def in_world() -> Iterator[None]:
    """Start MPI on the main thread, with all other ranks; end it with them. Raises `KVError`.

    After an exception it is not ended in order, as that waits for everybody: `mpirun` ends the others then.
    """
    from hpcserve.kv.mpi_world import join_world

    world = join_world()
    yield
    world.mpi.Finalize()
