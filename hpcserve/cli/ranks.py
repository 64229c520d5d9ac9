"""Commands that `mpirun` or `srun` started on many ranks at once: rank 0 goes on with it, the others hold workers.

All ranks have the same command line; `be_rank` and `leading` are where their ways part.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hpcserve.errors import ClusterError

if TYPE_CHECKING:
    from hpcserve.config import Config


def be_rank(config: Config) -> int | None:
    """Hold a worker for as long as rank 0 wants and return the exit code; None where this is not such a rank."""
    if config.cluster.kind != "mpi":
        return None
    from hpcserve.cluster.launcher import read_launch
    from hpcserve.state import StateDir

    launch = read_launch()
    if launch is None or launch.rank == 0:
        return None
    from hpcserve.cluster.rank import run_rank

    return run_rank(StateDir.of(config.name).path, launch, in_world=config.kv.transport == "mpi")


@dataclass
class Lead:
    """What rank 0 notes, so that no rank waits for a head that never ran."""

    has_head: bool = False  # from the moment on that one is being started


@contextmanager
def leading(config: Config) -> Iterator[Lead]:
    """Be rank 0: in MPI's world where KV travels so. Everything else yields, too, and is left alone."""
    from hpcserve.cluster.launcher import read_launch

    launch = read_launch()
    lead = Lead()
    if config.cluster.kind != "mpi" or launch is None:
        yield lead
        return
    with _world(config):
        try:
            yield lead
        except BaseException:
            _send_away(config, launch.label)
            raise
        if not lead.has_head:
            _send_away(config, launch.label)


def _send_away(config: Config, label: str) -> None:
    """Tell ranks that wait for a head that there will be none."""
    from hpcserve.cluster.rank_protocol import Rendezvous, write_rendezvous
    from hpcserve.state import StateDir

    state = StateDir.of(config.name)
    state.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_rendezvous(state, Rendezvous(label=label, address=None))


def name_of_start() -> str:
    """Return a deployment's name that all ranks of this start find, and no other start does. Raises `ClusterError`."""
    from hpcserve.cluster.launcher import read_launch

    launch = read_launch()
    if launch is None:
        raise ClusterError(
            "--cluster mpi: no launcher started this process; use mpirun or srun, with a rank more than workers, "
            "or `hpcserve batch submit`"
        )
    return f"batch-{launch.label}"


def num_workers() -> int | None:
    """Return how many ranks can hold a worker, or None where no launcher started this process."""
    from hpcserve.cluster.launcher import read_launch

    launch = read_launch()
    return launch.num_workers if launch else None


@contextmanager
def _world(config: Config) -> Iterator[None]:
    if config.kv.transport != "mpi":
        yield
        return
    from hpcserve.cluster.world import in_world

    with in_world():
        yield
