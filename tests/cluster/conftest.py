"""Clusters that run the stand-in agent instead of the real one."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from hpcserve.cluster import Cluster, WorkerSpec
from hpcserve.cluster.command import log_file
from hpcserve.cluster.local import LocalCluster
from hpcserve.cluster.slurm import SlurmCluster
from hpcserve.config.models import Config
from hpcserve.types import Role, WorkerId

STAND_IN = "tests.cluster.stand_in_agent"


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


@pytest.fixture(
    params=["local_cluster", pytest.param("slurm_cluster", marks=[pytest.mark.real, pytest.mark.slurm])],
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
