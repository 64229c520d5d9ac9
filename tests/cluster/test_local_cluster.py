"""Processes as workers: what only this cluster has."""

import os
import shlex
import signal
from pathlib import Path

import pytest

from hpcserve.cluster import JobState, make_cluster
from hpcserve.cluster.command import log_file
from hpcserve.cluster.local import LocalCluster
from hpcserve.config.models import Config
from hpcserve.errors import ClusterError
from tests.cluster.conftest import STAND_IN, Logs, make_config, make_spec, until


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_another_head_finds_and_ends_the_worker(local_cluster: LocalCluster, logs: Logs, tmp_path: Path) -> None:
    spec = make_spec("--drain-at-once")
    job_id = await local_cluster.launch(spec)
    await logs.until_started(spec)
    second = LocalCluster(make_config(), tmp_path, agent_module=STAND_IN)
    second.adopt(job_id)
    assert (await second.observe())[job_id].state is JobState.RUNNING
    await second.cancel([job_id])
    await second.wait_gone([job_id], timeout_s=10)
    view = (await second.observe())[job_id]
    assert (view.state, view.reason) == (JobState.GONE, "ENDED")


async def test_a_recycled_pid_is_not_taken_for_the_worker_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signalled: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, _: signalled.append(pid))
    monkeypatch.setattr(os, "killpg", lambda pid, _: signalled.append(pid))
    cluster = LocalCluster(make_config(), tmp_path)
    impostor = f"{os.getpid()}:1"
    cluster.adopt(impostor)
    assert (await cluster.observe())[impostor].state is JobState.GONE
    await cluster.cancel([impostor])
    await cluster.cancel([impostor], force=True)
    await cluster.close()
    assert signalled == []


async def test_what_a_dead_agent_left_running_is_ended(local_cluster: LocalCluster, logs: Logs) -> None:
    spec = make_spec("--child")
    job_id = await local_cluster.launch(spec)
    log = await logs.until_says(spec, "child ")
    child = int(next(line for line in log.splitlines() if line.startswith("child")).split()[1])
    os.kill(int(job_id.partition(":")[0]), signal.SIGKILL)
    await local_cluster.wait_gone([job_id], timeout_s=10)
    assert (await local_cluster.observe())[job_id].reason == "FAILED: killed by SIGKILL"
    await until(lambda: not _is_alive(child))


async def test_a_worker_is_out_of_reach_of_the_terminals_interrupt(local_cluster: LocalCluster) -> None:
    pid = int((await local_cluster.launch(make_spec())).partition(":")[0])
    assert os.getsid(pid) == pid != os.getsid(0)
    assert os.getpgid(pid) == pid


@pytest.mark.parametrize(("threads", "workers", "expected"), [(3, 1, 3), (None, 1, None), (None, 1000, 1)])
async def test_cores_are_shared_out(
    tmp_path: Path, logs: Logs, threads: int | None, workers: int, expected: int | None
) -> None:
    config = Config.model_validate(
        {"cluster": {"kind": "local", "local": {"threads": threads}}, "pools": {"workers": workers}}
    )
    cluster = LocalCluster(config, tmp_path, agent_module=STAND_IN)
    spec = make_spec()
    try:
        await cluster.launch(spec)
        around = await logs.until_started(spec)
    finally:
        await cluster.close()
    assert around["OMP_NUM_THREADS"] == str(expected or len(os.sched_getaffinity(0)))


async def test_only_this_user_can_read_a_workers_log(local_cluster: LocalCluster, logs: Logs, tmp_path: Path) -> None:
    spec = make_spec()
    await local_cluster.launch(spec)
    await logs.until_started(spec)
    assert log_file(tmp_path, spec).stat().st_mode & 0o777 == 0o600


def test_the_rendered_command_is_one_a_shell_would_run(tmp_path: Path) -> None:
    cluster = make_cluster(Config.model_validate({"cluster": {"kind": "local"}}), tmp_path / "with space")
    words = shlex.split(cluster.render(make_spec()))
    assert words[0].startswith("OMP_NUM_THREADS=")
    assert words[2:4] == ["-m", "hpcserve.agent"]
    assert words[words.index("--state-dir") + 1] == str(tmp_path / "with space")


def test_a_slurm_job_cannot_be_adopted(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"'4711' is no job of a local deployment"):
        LocalCluster(make_config(), tmp_path).adopt("4711")
