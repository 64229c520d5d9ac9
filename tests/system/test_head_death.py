"""The head is killed, or its job is: streams go on, requests wait, and what runs is taken over. With mock engines."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from tests.chaos.daemons import SlurmDaemons
from tests.fixtures_devcluster import DevCluster
from tests.system.chats import Chat, metric, session_for, stream_chat, stream_chats
from tests.system.conftest import Deployment, run_hpcserve

pytestmark = [pytest.mark.real, pytest.mark.timeout(150)]

# Of different lengths: what the mock says depends on the last token and its position.
PROMPTS = [f"conversation {'i' * number}: " + "tell me about fair queues. " * 20 for number in range(16)]
LATE = [f"who waits {'w' * number}: " + "for a head that is gone? " * 5 for number in range(6)]
NUM_TOKENS = 700
SLOWLY = ("--engine", "mock", "--set", "engine.mock.speedup=0.3")  # 14 s of streaming: longer than a head is away


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, str]:
    """What is answered to each prompt where no head dies. It does not depend on where the engines run, nor how fast."""
    return {}


async def texts(undisturbed: dict[str, str], deploy: Callable[..., Deployment]) -> dict[str, str]:
    if not undisturbed:
        calm = deploy("--cluster", "local", "--engine", "mock", "--set", "engine.mock.speedup=100", name="calm")
        chats = await stream_chats(calm.endpoint, calm.key, PROMPTS, max_tokens=NUM_TOKENS)
        calm.hpcserve("down")
        undisturbed |= {prompt: chat.text for prompt, chat in zip(PROMPTS, chats, strict=True)}
    return undisturbed


def kill_head(deployment: Deployment) -> int:
    """Kill it as nothing is prepared for, and return its pid."""
    pid = int(json.loads((deployment.state_dir / "head.json").read_text())["proc"]["pid"])
    os.kill(pid, signal.SIGKILL)
    return pid


def jobs_of(deployment: Deployment) -> dict[str, str]:
    """Return the job of each worker, as recorded."""
    records = json.loads((deployment.state_dir / "jobs.json").read_text())
    return {record["worker"]: record["job_id"] for record in records}


async def chat_across(
    deployment: Deployment, disturb: Callable[[], object], come_back: Callable[[], object]
) -> tuple[list[Chat], list[Chat], float]:
    """Stream while the head is lost and comes back; begin more meanwhile. Return both, and how long it was away."""
    chats = [Chat() for _ in PROMPTS]
    async with session_for(deployment.endpoint, deployment.key) as session:
        running = [
            asyncio.create_task(stream_chat(session, prompt, max_tokens=NUM_TOKENS, model="mock", chat=chat))
            for prompt, chat in zip(PROMPTS, chats, strict=True)
        ]
        while not all(chat.num_chunks > 5 for chat in chats):
            await asyncio.sleep(0.01)
        disturb()
        lost_at = time.monotonic()
        late = [asyncio.create_task(stream_chat(session, each, max_tokens=20, model="mock")) for each in LATE]
        if len(deployment.up["frontend_pids"]) == 1:  # several add up their metrics, for which they need a head
            while await metric(session, "hpcserve_headless_requests") < len(LATE):
                await asyncio.sleep(0.05)
        await asyncio.to_thread(come_back)
        away_s = time.monotonic() - lost_at
        assert not all(task.done() for task in running), f"the head was away for {away_s:.1f} s"
        answered = list(await asyncio.gather(*late))
        await asyncio.gather(*running)
    return chats, answered, away_s


async def check_head_death(
    deployment: Deployment, expected: dict[str, str], come_back: Callable[[int], object]
) -> None:
    """Kill the head under load: nobody notices, and the jobs are the same."""
    before = jobs_of(deployment)
    killed: list[int] = []
    chats, late, away_s = await chat_across(
        deployment, lambda: killed.append(kill_head(deployment)), lambda: come_back(killed[0])
    )
    assert not [chat.error for chat in (*chats, *late) if chat.error]
    assert {prompt: chat.text for prompt, chat in zip(PROMPTS, chats, strict=True)} == expected
    print(f"the head was away for {away_s:.1f} s")
    assert {chat.usage["completion_tokens"] for chat in late} == {20}
    assert away_s < 30, "seconds, on a machine that does other things as well"
    assert jobs_of(deployment) == before
    status = deployment.status()
    assert status["phase"] == "serving"
    assert {worker["id"]: worker["state"] for worker in status["workers"]} == dict.fromkeys(before, "ready")
    assert status["endpoint"] == deployment.endpoint


@pytest.mark.slurm
async def test_a_new_head_takes_over_slurm_jobs_under_load_and_resubmits_none(
    slurm: DevCluster, env: dict[str, str], deploy: Callable[..., Deployment], undisturbed: dict[str, str]
) -> None:
    env["SLURM_CONF"] = str(slurm.conf)
    expected = await texts(undisturbed, deploy)
    deployment = deploy("--cluster", "slurm", *SLOWLY, "--nodes", "4", "--frontends", "2")
    queued = slurm.slurm("squeue", "--noheader", "--format=%i %j")
    up = ("up", "--detach", "--json", "--name", "t")
    refused = run_hpcserve(*up, env=env)
    assert refused.returncode
    assert "already running" in refused.stderr

    def come_back(_: int) -> None:
        back = run_hpcserve(*up, env=env, check=True)
        assert "a new head takes over" in back.stderr
        assert json.loads(back.stdout)["endpoint"] == deployment.endpoint

    await check_head_death(deployment, expected, come_back)
    assert slurm.slurm("squeue", "--noheader", "--format=%i %j") == queued
    kill_frontend_that_is_no_child(deployment)
    kill_head(deployment)
    refused = run_hpcserve(*up, "--nodes", "3", env=env)
    assert refused.returncode
    assert "pools.workers is 4, not 3" in refused.stderr
    forget_a_job(deployment)
    deployment.hpcserve("down")
    assert slurm.slurm("squeue", "--noheader") == "", "not even the job that no head had noted"
    assert deployment.status()["phase"] == "stopped"


def kill_frontend_that_is_no_child(deployment: Deployment) -> None:
    """The new head watches over frontends that it has not started."""
    before = deployment.status()["frontend_pids"]
    os.kill(before[1], signal.SIGKILL)
    deadline = time.monotonic() + 30
    while len(pids := deployment.status()["frontend_pids"]) < 2 or pids == before:
        assert time.monotonic() < deadline, f"not started again: {pids}"
    assert pids[0] == before[0]


def forget_a_job(deployment: Deployment) -> None:
    """Leave the records as a head does that dies between a submission and its note."""
    path = deployment.state_dir / "jobs.json"
    path.write_text(json.dumps(json.loads(path.read_text())[1:]))


@pytest.mark.slurm
async def test_a_new_head_takes_over_while_slurm_does_not_answer(
    slurm: DevCluster, env: dict[str, str], deploy: Callable[..., Deployment]
) -> None:
    env["SLURM_CONF"] = str(slurm.conf)
    deployment = deploy("--cluster", "slurm", "--engine", "mock", "--nodes", "2")
    before, queued = jobs_of(deployment), slurm.slurm("squeue", "--noheader", "--format=%i %j")
    daemons = SlurmDaemons(slurm.conf.parent)
    daemons.signal("slurmctld", signal.SIGTERM)  # which has it save its state
    try:
        while daemons.pid("slurmctld") is not None:
            await asyncio.sleep(0.05)
        kill_head(deployment)
        run_hpcserve("up", "--detach", "--name", "t", env=env, check=True)
        (chat,) = await stream_chats(deployment.endpoint, deployment.key, ["is Slurm there?"], max_tokens=5)
        assert not chat.error
    finally:
        daemons.start("slurmctld")
        wait_for_slurm(slurm)
    assert jobs_of(deployment) == before
    assert slurm.slurm("squeue", "--noheader", "--format=%i %j") == queued
    status = deployment.status()
    assert {worker["id"]: worker["state"] for worker in status["workers"]} == dict.fromkeys(before, "ready")
    deployment.hpcserve("down")
    assert slurm.slurm("squeue", "--noheader") == ""


def wait_for_slurm(slurm: DevCluster) -> None:
    deadline = time.monotonic() + 60
    while subprocess.run(["sinfo"], env=slurm.env, capture_output=True, check=False).returncode:
        assert time.monotonic() < deadline, "slurmctld does not come back"


async def test_a_new_head_takes_over_local_workers_under_load(
    deploy: Callable[..., Deployment], undisturbed: dict[str, str]
) -> None:
    expected = await texts(undisturbed, deploy)
    deployment = deploy("--cluster", "local", *SLOWLY, "--nodes", "2")
    back = ("up", "--detach", "--json", "--name", "t")
    await check_head_death(deployment, expected, lambda _: run_hpcserve(*back, env=deployment.env, check=True))
    second = ("-m", "hpcserve.serve.head", "--state-dir", str(deployment.state_dir))
    refused = await asyncio.create_subprocess_exec(sys.executable, *second, stderr=asyncio.subprocess.PIPE)
    _, said = await refused.communicate()
    assert refused.returncode
    assert b"another head already runs deployment 't'" in said
    assert deployment.status()["phase"] == "serving", "that one has touched nothing"
    deployment.hpcserve("down")
    assert deployment.status()["phase"] == "stopped"


@pytest.mark.slurm
async def test_a_head_in_a_job_of_its_own_comes_back_when_it_is_killed_and_when_it_is_requeued(
    slurm: DevCluster, env: dict[str, str], deploy: Callable[..., Deployment], undisturbed: dict[str, str]
) -> None:
    env["SLURM_CONF"] = str(slurm.conf)
    expected = await texts(undisturbed, deploy)
    loopback = ("--set", "cluster.interface=lo")  # all nodes are this machine
    deployment = deploy("--cluster", "slurm", *SLOWLY, "--nodes", "2", "--head", "job", *loopback)
    queued = sorted(slurm.slurm("squeue", "--noheader", "--format=%i %j").splitlines())
    assert len(queued) == 3
    await check_head_death(deployment, expected, lambda pid: wait_for_other_head(deployment, pid))
    (head_job,) = (line.split()[0] for line in queued if "head." in line)
    before = deployment.status()["head_pid"]
    slurm.slurm("scontrol", "requeue", head_job)
    wait_for_other_head(deployment, before)
    assert sorted(slurm.slurm("squeue", "--noheader", "--format=%i %j").splitlines()) == queued
    endpoint = deployment.status()["endpoint"]
    (chat,) = await stream_chats(endpoint, deployment.key, ["and now?"], max_tokens=5)
    assert not chat.error
    deployment.hpcserve("down")
    assert slurm.slurm("squeue", "--noheader") == ""


def wait_for_other_head(deployment: Deployment, known: int) -> None:
    """Wait until a head serves that is not the known one."""
    deadline = time.monotonic() + 60
    while (status := deployment.status())["phase"] != "serving" or status["head_pid"] in (None, known):
        assert time.monotonic() < deadline, f"no other head serves: {status}"
