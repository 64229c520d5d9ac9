"""The development cluster's own script: booting, refusing and leaving nothing."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.conftest import until
from tests.fixtures_devcluster import ROOT, DevCluster, free_ports

pytestmark = [pytest.mark.real, pytest.mark.slurm]

Script = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def script(tmp_path: Path, devcluster: DevCluster) -> Iterator[Script]:
    """Run slurm/devcluster on a directory of this test, beside the session's cluster."""

    def run(command: str, *options: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / "slurm" / "devcluster"), command, "--dir", str(tmp_path / "dev"), *options],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    yield run
    run("down")


def _processes(directory: Path) -> list[str]:
    """Return what runs with the cluster of `directory` in its environment or on its command line."""
    found = []
    for proc in Path("/proc").iterdir():
        if proc.name.isdigit():
            try:
                text = (proc / "environ").read_bytes() + (proc / "cmdline").read_bytes()
            except OSError:
                continue
            if str(directory / "dev").encode() in text:
                found.append(proc.name)
    return found


async def test_it_boots_twice_as_once_and_leaves_nothing_of_itself_or_its_jobs(script: Script, tmp_path: Path) -> None:
    port = f"--port={free_ports(9)}"
    first = script("up", port)
    assert first.returncode == 0, first.stderr
    conf = tmp_path / "dev" / "slurm.conf"
    assert first.stdout == f"export SLURM_CONF={conf}\n"
    daemons = len(_processes(tmp_path))
    assert daemons >= 10
    again = script("up", port)
    assert (again.returncode, again.stdout, len(_processes(tmp_path))) == (0, first.stdout, daemons)
    assert "gpu[1-8]" in script("status").stdout
    stubborn = tmp_path / "job.sh"
    stubborn.write_text("#!/bin/sh\ntrap '' TERM\ntouch running\nwhile :; do sleep 1; done\n")
    DevCluster(conf).slurm("sbatch", f"--chdir={tmp_path}", "--output=/dev/null", str(stubborn))
    await until((tmp_path / "running").exists)
    down = script("down")
    assert down.returncode == 0, down.stderr
    await until(lambda: not _processes(tmp_path))
    assert script("status").returncode == 3
    assert script("down").stderr == "devcluster: nothing was running\n"


def test_it_refuses_ports_that_are_taken(script: Script, devcluster: DevCluster) -> None:
    conf = devcluster.conf.read_text()
    port = next(line for line in conf.splitlines() if line.startswith("SlurmctldPort=")).partition("=")[2]
    refused = script("up", f"--port={port}")
    assert refused.returncode == 1
    assert f"port {port}, " in refused.stderr
    assert "choose others with --port" in refused.stderr
    assert "gpu" in devcluster.slurm("sinfo")


def test_it_says_what_to_install(script: Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = (ROOT / "slurm" / "devcluster").read_text()
    assert 'PLAIN_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"' in text
    bare = tmp_path / "devcluster"
    bare.write_text(text.replace('PLAIN_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"', 'PLAIN_PATH = "/nowhere"'))
    monkeypatch.setenv("PATH", "/nowhere")
    refused = subprocess.run(
        [sys.executable, str(bare), "up", "--dir", str(tmp_path / "dev")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert refused.returncode == 4
    assert refused.stderr == (
        "devcluster: missing munge, slurmctld, slurmd, slurm-client; on Debian: apt-get install slurm-wlm munge\n"
    )
