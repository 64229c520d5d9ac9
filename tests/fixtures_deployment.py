"""Deployments as users make them: the `hpcserve` command, its JSON, its state directory. Always taken down."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HPCSERVE = str(Path(sys.executable).with_name("hpcserve"))


@dataclass(frozen=True)
class Deployment:
    """What `up --detach --json` printed, and the means to look at it and end it."""

    up: dict[str, Any]
    env: dict[str, str]

    @property
    def endpoint(self) -> str:
        return str(self.up["endpoint"])

    @property
    def state_dir(self) -> Path:
        return Path(self.up["state_dir"])

    @property
    def key(self) -> str:
        return Path(self.up["key_file"]).read_text().strip()

    def hpcserve(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return run_hpcserve(*arguments, "--name", self.up["name"], env=self.env, check=check)

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.hpcserve("status", "--json", check=False).stdout))

    def log(self, name: str) -> str:
        return (self.state_dir / "logs" / f"{name}.log").read_text()


def run_hpcserve(*arguments: str, env: dict[str, str], check: bool = False) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([HPCSERVE, *arguments], env=env, capture_output=True, text=True, timeout=180, check=False)
    assert not check or done.returncode == 0, f"hpcserve {arguments}: exit code {done.returncode}\n{done.stderr}"
    return done


@pytest.fixture
def state_root() -> Iterator[Path]:
    """A short path: sockets live under it."""
    with temporary_state_root() as root:
        yield root


@contextmanager
def temporary_state_root() -> Iterator[Path]:
    """Make a directory for state directories; nothing of theirs may run at its end."""
    root = Path(tempfile.mkdtemp(prefix="hs-"))
    try:
        yield root
    finally:
        left = processes_of(root)
        shutil.rmtree(root, ignore_errors=True)
    assert not left, f"still running: {left}"


@pytest.fixture
def env(state_root: Path) -> dict[str, str]:
    return os.environ | {"HPCSERVE_STATE_DIR": str(state_root)}


@pytest.fixture
def deploy(env: dict[str, str]) -> Iterator[Callable[..., Deployment]]:
    """Bring deployments up, and down at the end, by force if the test did not."""
    with deploying(env) as up:
        yield up


@pytest.fixture(scope="module")
def deploy_shared() -> Iterator[Callable[..., Deployment]]:
    """The same for deployments that all tests of a module use and leave as they are: to bring one up takes seconds."""
    with temporary_state_root() as root, deploying(os.environ | {"HPCSERVE_STATE_DIR": str(root)}) as up:
        yield up


@contextmanager
def deploying(env: dict[str, str]) -> Iterator[Callable[..., Deployment]]:
    """Yield what brings a deployment up; each is taken down at the end, by force if it still runs."""
    made: list[Deployment] = []

    def up(*arguments: str, name: str = "t") -> Deployment:
        try:
            done = run_hpcserve(
                "up", "--detach", "--json", "--port", "0", "--name", name, *arguments, env=env, check=True
            )
        except (AssertionError, subprocess.TimeoutExpired):
            print_logs(Path(env["HPCSERVE_STATE_DIR"]) / name / "logs")
            run_hpcserve("down", "--force", "--name", name, env=env)
            raise
        made.append(Deployment(json.loads(done.stdout), env))
        return made[-1]

    yield up
    for deployment in made:
        if deployment.status()["phase"] not in ("stopped", "failed"):
            deployment.hpcserve("down", "--force")


def print_logs(directory: Path) -> None:
    """Show the end of every log, for a test that fails."""
    for path in sorted(directory.glob("*.log")):
        print(f"== {path.name}", *path.read_text(errors="replace").splitlines()[-40:], sep="\n")


def processes_of(root: Path) -> list[str]:
    """Return the command lines that name a state directory under `root`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if f"{root}/" in line and "hpcserve" in line:
            found.append(line.strip())
    return found
