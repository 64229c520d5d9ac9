"""The one-machine Slurm as a fixture: one boot a pytest session, shared by all suites, always taken down."""

import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
_SCRIPT = ROOT / "slurm" / "devcluster"


@dataclass(frozen=True)
class DevCluster:
    """A running development cluster: partition `gpu` (the default), nodes gpu1 to gpu8 of 8 cores and 4 GPUs."""

    conf: Path

    @property
    def env(self) -> dict[str, str]:
        """The environment in which Slurm's commands find it."""
        return os.environ | {"SLURM_CONF": str(self.conf)}

    def slurm(self, *command: str) -> str:
        """Run one of Slurm's commands and return its output."""
        return subprocess.run(command, env=self.env, check=True, capture_output=True, text=True, timeout=30).stdout


@pytest.fixture(scope="session")
def devcluster() -> Iterator[DevCluster]:
    """A development cluster: the one that SLURM_CONF names if it is up, else one booted for this session.

    Skips where this machine cannot boot one, with what is missing.
    """
    running = DevCluster(Path(os.environ.get("SLURM_CONF", "/")))
    if _is_devcluster(running):
        yield running
        return
    directory = Path(tempfile.mkdtemp(prefix="devcluster-"))
    try:
        boot = _devcluster("up", directory, f"--port={free_ports(9)}")
        if boot.returncode == 4:
            pytest.skip(boot.stderr.strip())
        assert boot.returncode == 0, boot.stderr
        yield DevCluster(directory / "slurm.conf")
    finally:
        down = _devcluster("down", directory)
        shutil.rmtree(directory, ignore_errors=True)
        assert down.returncode == 0, down.stderr


@pytest.fixture
def slurm(devcluster: DevCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[DevCluster]:
    """The development cluster as this test's Slurm. A job that a test leaves behind fails it, and is cancelled."""
    monkeypatch.setenv("SLURM_CONF", str(devcluster.conf))
    yield devcluster
    left = devcluster.slurm("squeue", "--noheader", "--format=%A %j %T").splitlines()
    if left:
        devcluster.slurm("scancel", *(line.split()[0] for line in left))
    assert not left, f"jobs left behind: {left}"


def _is_devcluster(cluster: DevCluster) -> bool:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return "ClusterName=devcluster" in cluster.conf.read_text() and bool(cluster.slurm("sinfo", "--noheader"))
    return False


def _devcluster(command: str, directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(_SCRIPT), command, "--dir", str(directory), *options],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def free_ports(count: int) -> int:
    """Return the first of `count` ports in a row that nobody listens on."""
    for _ in range(100):
        first = random.randrange(20000, 30000)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise RuntimeError("no free ports")
