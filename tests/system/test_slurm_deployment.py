"""`hpcserve up` on a real Slurm of eight nodes, with mock engines: the load, the loss of a worker, the end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fixtures_devcluster import DevCluster
from tests.system.chats import Chat, stream_chats, stream_chats_while
from tests.system.conftest import Deployment, run_hpcserve

pytestmark = [pytest.mark.real, pytest.mark.slurm, pytest.mark.timeout(180)]

NUM_CHATS = 200
# Forty conversations of different lengths: what the mock says depends on the last token and its position.
PROMPTS = [f"conversation {'i' * (number % 40)}: " + "tell me about fair queues. " * 40 for number in range(NUM_CHATS)]


@pytest.fixture
def on_slurm(slurm: DevCluster, env: dict[str, str], deploy: Callable[..., Deployment]) -> Callable[..., Deployment]:
    """Bring up on the development cluster; what is left in its queue fails the test."""
    env["SLURM_CONF"] = str(slurm.conf)
    return lambda *arguments: deploy("--cluster", "slurm", "--engine", "mock", *arguments)


def check_complete(chats: list[Chat], max_tokens: int) -> None:
    assert not [chat.error for chat in chats if chat.error]
    assert {chat.finish_reason for chat in chats} == {"length"}
    assert {chat.usage["completion_tokens"] for chat in chats} == {max_tokens}


async def test_eight_nodes_serve_two_hundred_streams_and_leave_an_empty_queue(
    on_slurm: Callable[..., Deployment], slurm: DevCluster
) -> None:
    deployment = on_slurm("--nodes", "8", "--mode", "disaggregated")
    workers = deployment.up["workers"]
    assert Counter((worker["pool"], worker["state"]) for worker in workers) == {
        ("prefill", "ready"): 2,
        ("decode", "ready"): 6,
    }
    nodes = slurm.slurm("squeue", "--noheader", "--format=%N").split()
    assert sorted(nodes) == [f"gpu{number}" for number in range(1, 9)], "a node for every worker"
    chats = await stream_chats(deployment.endpoint, deployment.key, PROMPTS, max_tokens=50)
    check_complete(chats, 50)
    by_prompt = {(content, chat.text) for content, chat in zip(PROMPTS, chats, strict=True)}
    assert len(by_prompt) == len({text for _, text in by_prompt}) == 40, "each prompt its own text, wherever it ran"
    loads = [worker["load"] for worker in deployment.status()["workers"]]
    assert all(load["prompt_tokens_total"] > 100 for load in loads), "every worker took part"
    await check_receipt_so_far(deployment)
    down = deployment.hpcserve("down")
    assert slurm.slurm("squeue", "--noheader") == ""
    assert deployment.status()["phase"] == "stopped"
    check_receipt(deployment, down.stdout, chats)


async def check_receipt_so_far(deployment: Deployment) -> None:
    """What frontends have counted is written down every few seconds, not at once."""
    deadline = time.monotonic() + 20
    while True:
        so_far = json.loads(deployment.hpcserve("receipt", "--json").stdout)
        assert (so_far["is_final"], so_far["num_alive"]) == (False, 8)
        if so_far["num_requests"] == NUM_CHATS:
            return
        assert so_far["num_requests"] < NUM_CHATS
        assert time.monotonic() < deadline, so_far
        await asyncio.sleep(0.2)


def check_receipt(deployment: Deployment, printed: str, chats: list[Chat]) -> None:
    """Eight nodes of four GPUs each, though nobody asked for GPUs by number; every token is on it."""
    receipt = json.loads(deployment.hpcserve("receipt", "--json").stdout)
    assert (receipt["unit"], receipt["num_workers"], receipt["ends"]) == ("GPU-hours", 8, {"told": 8})
    assert receipt["hours"] == pytest.approx(4 * receipt["worker_hours"])
    assert receipt["num_requests"] == NUM_CHATS
    assert receipt["generated_tokens"] >= sum(chat.usage["completion_tokens"] for chat in chats)
    assert receipt["idle_share"] + receipt["busy_share"] + receipt["loading_share"] == pytest.approx(1.0)
    assert (deployment.state_dir / "receipt.json").exists()
    assert "GPU-hours, 8 workers" in printed


async def test_a_cancelled_worker_costs_no_request_and_is_replaced(
    on_slurm: Callable[..., Deployment], slurm: DevCluster
) -> None:
    deployment = on_slurm("--prefill", "1", "--decode", "3", "--set", "cluster.drain_timeout_s=0")
    undisturbed = await stream_chats(deployment.endpoint, deployment.key, PROMPTS[:40], max_tokens=400)
    victim = next(worker for worker in deployment.up["workers"] if worker["pool"] == "decode")
    chats = await stream_chats_while(
        lambda: slurm.slurm("scancel", victim["job_id"]), deployment.endpoint, deployment.key, PROMPTS, max_tokens=400
    )
    check_complete(chats, 400)
    assert [chat.text for chat in chats[:40]] == [chat.text for chat in undisturbed]
    assert "moving it" in deployment.log("frontend"), "requests ran on the worker that was cancelled"
    ready = await wait_for_workers(deployment, {"prefill": 1, "decode": 3})
    assert victim["id"] not in {worker["id"] for worker in ready}
    check_complete(await stream_chats(deployment.endpoint, deployment.key, PROMPTS[:20], max_tokens=10), 10)


async def test_a_killed_agent_costs_no_request_and_is_replaced(on_slurm: Callable[..., Deployment]) -> None:
    deployment = on_slurm("--nodes", "3")
    victim = deployment.up["workers"][0]
    chats = await stream_chats_while(
        lambda: kill_nine(victim["pid"], deployment), deployment.endpoint, deployment.key, PROMPTS, max_tokens=300
    )
    check_complete(chats, 300)
    await wait_for_workers(deployment, {"both": 3})


def test_the_printed_curl_line_works_and_keeps_the_key_off_the_command_line(
    slurm: DevCluster, env: dict[str, str], state_root: Path
) -> None:
    env["SLURM_CONF"] = str(slurm.conf)
    up = run_hpcserve(
        "up", "--cluster", "slurm", "--engine", "mock", "--port", "0", "--name", "c", "--detach", env=env, check=True
    )
    try:
        (line,) = [line for line in up.stdout.splitlines() if "curl " in line]
        command = line[line.index("curl ") :]
        answer = subprocess.run(command, shell=True, env=env, capture_output=True, check=True, timeout=30).stdout
        assert json.loads(answer)["choices"][0]["finish_reason"] == "length"
        assert (state_root / "c" / "api-key").read_text().strip() not in command
    finally:
        run_hpcserve("down", "--name", "c", env=env, check=True)


def test_a_wrong_partition_and_too_many_nodes_are_one_line_each_and_start_nothing(
    slurm: DevCluster, env: dict[str, str]
) -> None:
    env["SLURM_CONF"] = str(slurm.conf)
    common = ("up", "--cluster", "slurm", "--engine", "mock", "--detach", "--json")
    for arguments, words in (
        (("--partition", "gpux"), "partition 'gpux' does not exist; partitions here: gpu"),
        (("--nodes", "9"), "9 nodes are more than partition 'gpu' has: 8"),
    ):
        done = run_hpcserve(*common, *arguments, env=env)
        assert done.returncode == 4
        assert words in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert done.stdout == ""
    assert slurm.slurm("squeue", "--noheader") == ""


def test_a_dry_run_prints_every_job_script_and_submits_nothing(slurm: DevCluster, env: dict[str, str]) -> None:
    env["SLURM_CONF"] = str(slurm.conf)
    done = run_hpcserve(
        "up", "--cluster", "slurm", "--engine", "mock", "--nodes", "8", "--mode", "disaggregated", "--dry-run", env=env
    )
    assert done.returncode == 0
    assert done.stdout.count("#!/usr/bin/env bash") == 8
    assert done.stdout.count("#SBATCH --exclusive") == 8
    assert done.stdout.count("--pool prefill") == 2
    assert slurm.slurm("squeue", "--noheader") == ""


async def wait_for_workers(deployment: Deployment, wanted: dict[str, int]) -> list[dict[str, str]]:
    """Wait until exactly these are READY; the test's time-out bounds it."""
    async with asyncio.timeout(60):
        while True:
            status = json.loads(deployment.hpcserve("status", "--json").stdout)
            ready = [worker for worker in status["workers"] if worker["state"] == "ready"]
            if Counter(worker["pool"] for worker in ready) == wanted:
                return ready
            await asyncio.sleep(0.5)


def kill_nine(pid: int, deployment: Deployment) -> None:
    """Kill an agent, after a look that the pid is one."""
    assert str(deployment.state_dir) in Path(f"/proc/{pid}/cmdline").read_text()
    os.kill(pid, signal.SIGKILL)
