"""Clusters that run the stand-in agent instead of the real one."""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from hpcserve.cluster import Cluster, WorkerSpec
from hpcserve.cluster.command import log_file
from hpcserve.cluster.launcher import Launch, read_launch
from hpcserve.cluster.local import LocalCluster
from hpcserve.cluster.mpi import MpiCluster
from hpcserve.cluster.rank import Rank, run_rank
from hpcserve.cluster.rank_protocol import read_rendezvous
from hpcserve.cluster.slurm import SlurmCluster
from hpcserve.comm.tls import create_identity
from hpcserve.config.models import Config
from hpcserve.state import StateDir
from hpcserve.types import Role, WorkerId

STAND_IN = "tests.cluster.stand_in_agent"
MPIRUN = ("mpirun", *(("--allow-run-as-root",) if os.geteuid() == 0 else ()), "--oversubscribe")


def make_config(**slurm: Any) -> Config:
    return Config.model_validate({"name": "demo", "cluster": {"kind": "slurm", "slurm": {"cores": 1, **slurm}}})


def make_spec(*args: str, worker: str = "decode-3-a91f") -> WorkerSpec:
    return WorkerSpec(worker=WorkerId(worker), pool="decode", role=Role.DECODE, args=args)


async def until(condition: Callable[[], Any], timeout_s: float = 20.0) -> Any:
    """Return the first true value of `condition`, looked at every few milliseconds."""
    async with asyncio.timeout(timeout_s):
        while not (value := condition()):
            await asyncio.sleep(0.02)
    return value


class Logs:
    """What the stand-in agents of one deployment wrote."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir

    def read(self, spec: WorkerSpec) -> str:
        log = log_file(self._state_dir, spec)
        return log.read_text() if log.exists() else ""

    async def until_says(self, spec: WorkerSpec, words: str) -> str:
        try:
            await until(lambda: words in self.read(spec))
        except TimeoutError:
            pytest.fail(f"{words!r} is not in the log: {self.read(spec)!r}")
        return self.read(spec)

    async def until_started(self, spec: WorkerSpec) -> dict[str, Any]:
        """Return what the agent found around itself."""
        log = await self.until_says(spec, "started {")
        line = next(line for line in log.splitlines() if line.startswith("started"))
        return json.loads(line.removeprefix("started "))


@pytest.fixture
def logs(tmp_path: Path) -> Logs:
    return Logs(tmp_path)


@pytest.fixture
async def local_cluster(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    cluster = LocalCluster(make_config(), tmp_path, agent_module=STAND_IN)
    yield cluster
    await cluster.close()


@pytest.fixture
async def slurm_cluster(slurm: object, tmp_path: Path) -> AsyncIterator[SlurmCluster]:
    cluster = SlurmCluster(make_config(), tmp_path, agent_module=STAND_IN)
    yield cluster
    await cluster.close()


RANKS = 4


def make_state(path: Path) -> StateDir:
    """A state directory with an identity, as the head finds it."""
    state = StateDir(path)
    cert, key = create_identity()
    state.write_private(state.tls_cert, cert)
    state.write_private(state.tls_key, key)
    return state


def mpi_config() -> Config:
    return Config.model_validate({"name": "demo", "cluster": {"kind": "mpi", "interface": "lo"}})


@pytest.fixture
async def mpi_cluster(tmp_path: Path) -> AsyncIterator[MpiCluster]:
    """Ranks as tasks of this process, their agents as processes."""
    make_state(tmp_path)
    cluster = MpiCluster(mpi_config(), tmp_path, agent_module=STAND_IN, launch=Launch(0, RANKS))
    ranks = [asyncio.create_task(Rank(tmp_path, Launch(rank, RANKS)).run()) for rank in range(1, RANKS)]
    yield cluster
    await cluster.close()
    async with asyncio.timeout(10):
        assert await asyncio.gather(*ranks) == [0] * (RANKS - 1)


@pytest.fixture
async def mpirun_cluster(tmp_path: Path) -> AsyncIterator[MpiCluster]:
    """Ranks as `mpirun` starts them, around a rank 0 that only waits for the end."""
    make_state(tmp_path)
    program = "import sys; from tests.cluster.conftest import hold_rank; sys.exit(hold_rank(sys.argv[1]))"
    ranks = await asyncio.create_subprocess_exec(
        *MPIRUN, "-n", str(RANKS), sys.executable, "-c", program, str(tmp_path),
        stdin=asyncio.subprocess.DEVNULL, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    label = await asyncio.to_thread(read_label, tmp_path)
    cluster = MpiCluster(mpi_config(), tmp_path, agent_module=STAND_IN, launch=Launch(0, RANKS, label=label))
    yield cluster
    await cluster.close()
    async with asyncio.timeout(20):
        assert await ranks.wait() == 0


def hold_rank(directory: str) -> int:
    """What each process of `mpirun_cluster` runs."""
    launch = read_launch()
    assert launch is not None
    if launch.rank:
        return run_rank(Path(directory), launch)
    Path(directory, "label.part").write_text(launch.label)
    Path(directory, "label.part").rename(Path(directory, "label"))
    while (found := read_rendezvous(Path(directory))) is None or found.address is not None:
        time.sleep(0.1)
    return 0


def read_label(directory: Path) -> str:
    """Return how the launcher's start is called, once its rank 0 has said so."""
    deadline = time.monotonic() + 40
    while not (directory / "label").exists():
        assert time.monotonic() < deadline, "mpirun starts nothing"
        time.sleep(0.05)
    return (directory / "label").read_text()


@pytest.fixture(
    params=[
        "local_cluster",
        pytest.param("mpi_cluster", marks=[pytest.mark.real]),
        pytest.param("mpirun_cluster", marks=[pytest.mark.real]),
        pytest.param("slurm_cluster", marks=[pytest.mark.real, pytest.mark.slurm]),
    ],
)
def cluster(request: pytest.FixtureRequest) -> Cluster:
    """Every implementation in turn."""
    found: Cluster = request.getfixturevalue(request.param)
    return found


@pytest.fixture(autouse=True)
def _repository_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


@pytest.fixture
def no_youth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take agents for established as soon as they have started, as a test has seen them do."""
    monkeypatch.setattr("hpcserve.cluster.slurm._YOUNG_S", 0.0)
