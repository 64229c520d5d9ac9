"""Machines on which Slurm is missing or does not answer."""

from collections.abc import Callable
from pathlib import Path

import pytest

from hpcserve.cluster import resolve_kind, slurm_commands
from hpcserve.cluster.slurm import SlurmCluster
from hpcserve.config.models import Config
from hpcserve.errors import ClusterError
from tests.cluster.conftest import make_config, make_spec

Install = Callable[[str, str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put shell scripts in place of Slurm's commands; nothing else is on the PATH but /bin."""
    commands = tmp_path / "bin"
    commands.mkdir()
    shell = commands / "sh"
    shell.symlink_to("/bin/sh")
    (commands / "sleep").symlink_to("/bin/sleep")
    (commands / "cat").symlink_to("/bin/cat")
    monkeypatch.setenv("PATH", str(commands))

    def write(name: str, body: str) -> None:
        (commands / name).write_text(f"#!/bin/sh\n{body}\n")
        (commands / name).chmod(0o755)

    return write


def _auto() -> Config:
    return Config.model_validate({"cluster": {"kind": "auto"}})


async def test_without_its_commands_there_is_no_slurm(install: Install, tmp_path: Path) -> None:
    cluster = SlurmCluster(make_config(), tmp_path)
    with pytest.raises(ClusterError, match=r"^no Slurm here: sinfo not found on PATH; use --cluster local$"):
        await cluster.check(1)
    with pytest.raises(ClusterError, match=r"^no Slurm here: sbatch not found on PATH; use --cluster local$"):
        await cluster.launch(make_spec())


def test_auto_means_local_without_slurm(install: Install) -> None:
    assert resolve_kind(_auto()) == "local"


def test_auto_means_local_where_slurm_is_installed_but_does_not_answer(install: Install) -> None:
    install("sbatch", "exit 0")
    install("sinfo", "echo 'slurm_load_partitions: Unable to contact slurm controller' >&2; exit 1")
    assert resolve_kind(_auto()) == "local"


def test_auto_means_slurm_where_it_answers(install: Install) -> None:
    install("sbatch", "exit 0")
    install("sinfo", "echo gpu")
    assert resolve_kind(_auto()) == "slurm"


async def test_a_command_that_hangs_is_given_up_and_ended(install: Install) -> None:
    install("squeue", "exec sleep 60")
    with pytest.raises(ClusterError, match=r"^Slurm does not answer: squeue took longer than 0\.2 s$"):
        await slurm_commands.run_slurm("squeue", timeout_s=0.2)


async def test_a_controller_that_is_away_says_nothing_about_the_jobs(install: Install, tmp_path: Path) -> None:
    install("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    cluster = SlurmCluster(make_config(), tmp_path)
    cluster.adopt("7")
    with pytest.raises(ClusterError, match=r"^squeue failed: Unable to contact slurm controller$"):
        await cluster.observe()


async def test_a_users_own_squeue_filters_do_not_apply(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQUEUE_PARTITION", "other")
    install("squeue", 'echo "${SQUEUE_PARTITION-unset}"')
    assert await slurm_commands.run_slurm("squeue") == ("unset\n", "")


async def test_a_submission_that_is_cancelled_midway_leaves_no_job(install: Install, tmp_path: Path) -> None:
    import asyncio

    submitted, cancelled = tmp_path / "submitted", tmp_path / "cancelled"
    install("sbatch", f"echo > {submitted}; sleep 0.5; echo Submitted batch job 77")
    install("scancel", f'echo "$@" >> {cancelled}; echo > {tmp_path}/gone')
    running = f"{'77':24}{'RUNNING':24}{'0':12}{'100':24}{'200':24}{'1:00':24}{'gpu1':128}None"
    install("squeue", f'[ -e {tmp_path}/gone ] || echo "{running}"')
    cluster = SlurmCluster(make_config(), tmp_path)
    launch = asyncio.create_task(cluster.launch(make_spec()))
    async with asyncio.timeout(10):
        while not submitted.exists():
            await asyncio.sleep(0.01)
    launch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await launch
    await cluster.close()
    assert "77" in cancelled.read_text()


async def test_commands_without_a_configuration_say_what_to_set(install: Install, tmp_path: Path) -> None:
    install("sinfo", "echo 'fetch_config: Could not establish a configuration source' >&2; exit 1")
    with pytest.raises(ClusterError, match=r"sinfo finds no configuration of a cluster; set SLURM_CONF, or use"):
        await SlurmCluster(make_config(), tmp_path).check(1)
