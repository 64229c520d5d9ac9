"""A real Slurm: submission, signals, pending reasons and refusals, on the one-machine development cluster."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from hpcserve.cluster import JobState, resolve_kind
from hpcserve.cluster.slurm import SlurmCluster
from hpcserve.config.models import Config
from hpcserve.errors import ClusterError
from tests.cluster.conftest import STAND_IN, Logs, make_config, make_spec
from tests.fixtures_devcluster import DevCluster

pytestmark = [pytest.mark.real, pytest.mark.slurm, pytest.mark.usefixtures("slurm")]


def make(tmp_path: Path, **slurm: Any) -> SlurmCluster:
    return SlurmCluster(make_config(**slurm), tmp_path, agent_module=STAND_IN)


def test_auto_finds_slurm() -> None:
    assert resolve_kind(Config.model_validate({"cluster": {"kind": "auto"}})) == "slurm"


@pytest.mark.parametrize("style", ["gres", "gpus-per-node", "gpus-per-task", "none"])
async def test_a_worker_gets_as_many_gpus_as_it_asks_for(tmp_path: Path, logs: Logs, style: str) -> None:
    cluster, spec = make(tmp_path, gpus=2, gpu_request=style), make_spec()
    try:
        await cluster.launch(spec)
        visible = (await logs.until_started(spec))["CUDA_VISIBLE_DEVICES"]
    finally:
        await cluster.close()
    assert len(visible.split(",")) == 2 if style != "none" else visible is None


async def test_the_agent_is_the_batch_shell_and_the_prologue_ran_before_it(tmp_path: Path, logs: Logs) -> None:
    cluster, spec = make(tmp_path, prologue=["export FROM_PROLOGUE=$$"]), make_spec()
    try:
        job_id = await cluster.launch(spec)
        around = await logs.until_started(spec)
    finally:
        await cluster.close()
    assert around["FROM_PROLOGUE"] == str(around["pid"])
    assert around["SLURM_JOB_ID"] == job_id


async def test_a_module_that_cannot_be_loaded_ends_the_job(tmp_path: Path, logs: Logs) -> None:
    cluster, spec = make(tmp_path, modules=["no-such-module"]), make_spec()
    try:
        job_id = await cluster.launch(spec)
        await cluster.wait_gone([job_id], timeout_s=20)
        assert (await cluster.observe())[job_id].reason == "FAILED: exit code 1"
    finally:
        await cluster.close()
    assert "started" not in logs.read(spec)


async def test_the_ninth_exclusive_worker_waits_and_says_why(tmp_path: Path) -> None:
    cluster = make(tmp_path, extra_directives=["--exclusive"])
    try:
        jobs = [await cluster.launch(make_spec(worker=f"decode-{index}")) for index in range(9)]
        views = await _until_settled(cluster, num_running=8)
        assert (views[jobs[8]].state, views[jobs[8]].reason) == (JobState.PENDING, "Resources")
        assert len({views[job].host for job in jobs[:8]}) == 8
        await cluster.cancel([jobs[8]])
        await cluster.wait_gone([jobs[8]], timeout_s=10)
        assert (await cluster.observe())[jobs[8]].reason == "CANCELLED"
    finally:
        await cluster.close()


async def _until_settled(cluster: SlurmCluster, num_running: int) -> dict[str, Any]:
    async with asyncio.timeout(20):
        while True:
            views = await cluster.observe()
            waiting = [view.reason for view in views.values() if view.state is JobState.PENDING]
            if len(views) - len(waiting) == num_running and "Resources" in waiting:
                return views
            await asyncio.sleep(0.1)


async def test_scancel_by_hand_reaches_the_agent_as_sigterm(slurm: DevCluster, tmp_path: Path, logs: Logs) -> None:
    cluster, spec = make(tmp_path), make_spec("--drain-at-once")
    try:
        job_id = await cluster.launch(spec)
        await logs.until_started(spec)
        slurm.slurm("scancel", job_id)
        await logs.until_says(spec, "ended")
        await cluster.wait_gone([job_id], timeout_s=10)
        assert (await cluster.observe())[job_id].reason == "CANCELLED"
    finally:
        await cluster.close()


async def test_a_drain_leaves_the_agents_children_alone(tmp_path: Path, logs: Logs, no_youth: None) -> None:
    cluster, spec = make(tmp_path), make_spec("--child")
    try:
        job_id = await cluster.launch(spec)
        log = await logs.until_says(spec, "child ")
        await logs.until_started(spec)
        child = int(next(line for line in log.splitlines() if line.startswith("child")).split()[1])
        await cluster.cancel([job_id])
        await logs.until_says(spec, "draining")
        await cluster.observe()
        assert "child was told" not in logs.read(spec)
        os.kill(child, signal.SIGTERM)
        await logs.until_says(spec, "child was told")
        os.kill(child, signal.SIGKILL)
    finally:
        await cluster.close()


@pytest.mark.timeout(150)
async def test_the_end_of_the_walltime_is_announced_by_sigterm(tmp_path: Path, logs: Logs) -> None:
    # Two minutes: of one, the minute before its end is the first, and the signal may meet a shell without a handler.
    cluster, spec = make(tmp_path, walltime="2"), make_spec("--drain-at-once")
    try:
        job_id = await cluster.launch(spec)
        await logs.until_started(spec)
        view = (await cluster.observe())[job_id]
        assert view.started_at is not None
        assert view.ends_at == view.started_at + 120
        await cluster.wait_gone([job_id], timeout_s=120)
        view = (await cluster.observe())[job_id]
    finally:
        await cluster.close()
    assert "ended" in logs.read(spec)
    assert view.reason == "COMPLETED"


async def test_another_head_finds_and_ends_the_job(slurm_cluster: SlurmCluster, logs: Logs, tmp_path: Path) -> None:
    spec = make_spec("--drain-at-once")
    job_id = await slurm_cluster.launch(spec)
    await logs.until_started(spec)
    second = make(tmp_path)
    second.adopt(job_id)
    assert (await second.observe())[job_id].state is JobState.RUNNING
    await second.close()
    assert (await slurm_cluster.observe())[job_id].state is JobState.GONE


async def test_a_job_that_slurm_has_never_heard_of_is_gone(tmp_path: Path) -> None:
    cluster = make(tmp_path)
    cluster.adopt("999999")
    view = (await cluster.observe())["999999"]
    assert (view.state, view.reason) == (JobState.GONE, "not known to Slurm any more")


@pytest.mark.parametrize(
    ("slurm_config", "complaint"),
    [
        ({"partition": "nope"}, "partition 'nope' does not exist; partitions here: gpu"),
        ({"gpus": 5}, "2 workers are more than partition 'gpu' has room for: 0 on 8 nodes of up to 8 cores, 4 GPUs"),
        ({"constraint": "a100"}, "Slurm would not take such jobs: sbatch failed: Invalid feature specification"),
        ({"extra_directives": ["--nonsense"]}, "Slurm would not take such jobs: sbatch failed: unrecognized option"),
    ],
)
async def test_check_refuses_in_one_line(tmp_path: Path, slurm_config: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ClusterError) as caught:
        await make(tmp_path, **slurm_config).check(2)
    assert caught.value.message.startswith(complaint)
    assert "\n" not in caught.value.message


async def test_check_refuses_more_nodes_than_there_are(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"^9 nodes are more than partition 'gpu' has: 8$"):
        await make(tmp_path).check(9, num_nodes=9)


@pytest.mark.parametrize(
    ("slurm_config", "complaint"),
    [
        ({"partition": "nope"}, "Slurm refused decode-3-a91f: partition 'nope' does not exist; partitions here: gpu"),
        ({"constraint": "a100"}, "Slurm refused decode-3-a91f: Batch job submission failed: Invalid feature specifica"),
    ],
)
async def test_launch_refuses_in_slurms_words(tmp_path: Path, slurm_config: dict[str, Any], complaint: str) -> None:
    cluster = make(tmp_path, **slurm_config)
    with pytest.raises(ClusterError) as caught:
        await cluster.launch(make_spec())
    assert caught.value.message.startswith(complaint)
    await cluster.close()
