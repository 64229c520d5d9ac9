"""`hpcserve` on this machine with mock engines: every command, what it refuses, and what it leaves behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.system.chats import Chat, metric, session_for, stream_chat, stream_chats, stream_chats_while
from tests.system.conftest import HPCSERVE, Deployment, processes_of, run_hpcserve

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

LOCAL = ("--cluster", "local", "--engine", "mock")
UP = ("up", "--detach", "--json", *LOCAL)


@pytest.fixture
def local(deploy: Callable[..., Deployment]) -> Callable[..., Deployment]:
    return lambda *arguments: deploy(*LOCAL, *arguments)


@pytest.fixture(scope="module")
def two(deploy_shared: Callable[..., Deployment]) -> Deployment:
    """Two workers, for tests that leave them as they are."""
    return deploy_shared(*LOCAL, "--nodes", "2")


def get(url: str, key: str | None = None) -> tuple[int, Any]:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as err:
        with err:
            return err.code, json.loads(err.read())


def test_the_openai_client_works_against_prefill_and_decode_workers(local: Callable[..., Deployment]) -> None:
    deployment = local("--prefill", "1", "--decode", "2", "--set", "security.auth=on")
    with openai.OpenAI(base_url=deployment.endpoint, api_key=deployment.key) as client:
        assert [model.id for model in client.models.list()] == ["mock"]
        question: Any = [{"role": "user", "content": "why do queues form? " * 50}]
        whole = client.chat.completions.create(model="mock", messages=question, max_tokens=20)
        stream = client.chat.completions.create(
            model="mock", messages=question, max_tokens=20, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == (
            whole.choices[0].message.content
        )
        usage = chunks[-1].usage
        assert usage is not None
        assert usage.completion_tokens == 20
        assert usage.prompt_tokens_details is not None
        assert (usage.prompt_tokens_details.cached_tokens or 0) > 900, "the second time the prompt is cached"
        completion = client.completions.create(model="mock", prompt="once upon a time", max_tokens=5, n=2)
        assert [choice.index for choice in completion.choices] == [0, 1]
    wrong = openai.OpenAI(base_url=deployment.endpoint, api_key="wrong", max_retries=0)
    with wrong as stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()
    deployment.hpcserve("down")


async def test_the_async_openai_client_streams_many_at_once(two: Deployment) -> None:
    async with openai.AsyncOpenAI(base_url=two.endpoint, api_key="none") as client:

        async def chat(number: int) -> str:
            stream = await client.chat.completions.create(
                model="mock",
                messages=[{"role": "user", "content": f"number {number}"}],
                max_tokens=10,
                stream=True,
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        texts = await asyncio.gather(*(chat(number) for number in range(50)))
    assert len(texts) == 50
    assert all(texts)


@pytest.mark.parametrize("policy", ["round_robin", "kv"])
@pytest.mark.parametrize("pools", [("--nodes", "2"), ("--prefill", "1", "--decode", "1")], ids=["both", "split"])
async def test_each_deployment_mode_serves(
    local: Callable[..., Deployment], pools: tuple[str, ...], policy: str
) -> None:
    deployment = local(*pools, "--policy", policy)
    assert deployment.status()["policy"] == policy
    # of different lengths: what the mock says depends on the last token and its position
    contents = [f"document {'i' * (number % 4)}: " + "all about schedulers. " * 60 for number in range(16)]
    chats = await stream_chats(deployment.endpoint, "none", contents, max_tokens=10)
    async with session_for(deployment.endpoint, "none") as session:
        pulls_before = await metric(session, "hpcserve_prefix_pulls_total")
        again = await stream_chats(deployment.endpoint, "none", contents, max_tokens=10)
        num_pulled = await metric(session, "hpcserve_prefix_pulls_total") - pulls_before
    assert [chat.text for chat in again] == [chat.text for chat in chats]
    assert len({chat.text for chat in chats}) == 4
    assert {chat.finish_reason for chat in chats} == {"length"}
    if policy == "kv":
        cached = [chat.usage["prompt_tokens_details"]["cached_tokens"] for chat in again]
        num_missed = sum(each <= 1200 for each in cached)
        assert num_missed <= num_pulled, "every prompt went where its prefix was, or that to a free worker"
        assert num_missed < len(cached) / 2


def test_the_dask_dashboard_shows_the_workers(two: Deployment) -> None:
    url = two.up["dashboard"]
    assert url.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(url.replace("/hpcserve", "/info/main/workers.html"), timeout=10) as page:
        text = page.read().decode()
    assert all(worker["id"] in text for worker in two.up["workers"])
    with urllib.request.urlopen(url, timeout=10) as page:
        assert page.status == 200


def test_each_command_tells_the_truth_about_a_running_deployment(
    local: Callable[..., Deployment], env: dict[str, str]
) -> None:
    deployment = local("--nodes", "1")
    status = deployment.status()
    assert status["phase"] == "serving"
    assert status["frontend_pid"] == deployment.up["frontend_pid"]
    assert deployment.hpcserve("key").stdout.strip() == deployment.key
    assert stat.S_IMODE(Path(deployment.up["key_file"]).stat().st_mode) == 0o600
    assert stat.S_IMODE(deployment.state_dir.stat().st_mode) == 0o700
    worker = deployment.up["workers"][0]["id"]
    assert "READY" in deployment.hpcserve("logs", worker).stdout
    base = deployment.endpoint.removesuffix("/v1")
    assert get(f"{base}/health")[0] == 200
    assert get(f"{deployment.endpoint}/models")[1]["data"][0]["id"] == "mock"
    again = run_hpcserve(*UP, "--name", "t", "--port", "0", env=env)
    assert again.returncode == 5
    assert "already running" in again.stderr
    deployment.hpcserve("down")
    assert deployment.status()["phase"] == "stopped"
    assert deployment.hpcserve("down", check=False).returncode == 5


def test_status_and_down_work_from_another_host_that_sees_the_state_directory(
    local: Callable[..., Deployment], state_root: Path
) -> None:
    deployment = local("--nodes", "1")
    record = deployment.state_dir / "head.json"
    head = json.loads(record.read_text())
    head["proc"]["host"] = "login2"  # as if this were login1: the process cannot be looked up, only asked
    record.write_text(json.dumps(head))
    assert deployment.status()["phase"] == "serving"
    deployment.hpcserve("down")
    assert not processes_of(state_root)


def test_a_taken_port_is_refused_before_anything_starts(env: dict[str, str], state_root: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = str(holder.getsockname()[1])
        done = run_hpcserve(*UP, "--port", port, env=env)
    assert done.returncode == 5
    assert f"127.0.0.1:{port}" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not processes_of(state_root)


def test_a_model_that_is_not_there_is_refused_before_anything_starts(env: dict[str, str], state_root: Path) -> None:
    done = run_hpcserve("up", "--cluster", "local", "--model", "/no/such/model", "--detach", "--json", env=env)
    assert done.returncode == 2
    assert "/no/such/model" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not processes_of(state_root)


def test_an_engine_that_cannot_start_ends_the_deployment_with_its_reason(
    env: dict[str, str], state_root: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{ not json")
    done = run_hpcserve(*UP, "--port", "0", "--model", str(tmp_path), "--name", "bad", env=env)
    assert done.returncode == 6
    assert "tokenizer.json" in done.stderr
    assert not processes_of(state_root)


def test_the_frontend_is_started_again_when_it_dies(local: Callable[..., Deployment]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    deployment = local("--nodes", "1", "--port", str(port))
    os.kill(deployment.up["frontend_pid"], signal.SIGKILL)
    pid = deployment.up["frontend_pid"]
    while (status := deployment.status())["frontend_pid"] in (None, pid):
        assert status["phase"] in ("serving", "starting")
    assert deployment.endpoint == status["endpoint"]
    assert get(f"{deployment.endpoint}/models")[0] == 200


def test_a_dead_head_is_told_kept_from_other_settings_and_cleaned_up(
    local: Callable[..., Deployment], env: dict[str, str], state_root: Path
) -> None:
    deployment = local("--nodes", "2")
    os.kill(deployment.up["head_pid"], signal.SIGKILL)
    while Path(f"/proc/{deployment.up['head_pid']}").exists():
        pass
    status = deployment.status()
    assert status["phase"] == "failed"
    assert "head" in status["detail"]
    again = run_hpcserve(*UP, "--name", "t", "--port", "0", "--nodes", "3", env=env)
    assert again.returncode == 5
    assert "pools.workers is 2, not 3" in again.stderr
    assert "hpcserve down --name t" in again.stderr
    down = deployment.hpcserve("down")
    assert not processes_of(state_root)
    assert deployment.status()["phase"] == "stopped"
    assert "worker-hours, 2 workers, " in down.stdout, "on the receipt, though no head has seen their end"
    assert json.loads(deployment.hpcserve("receipt", "--json").stdout)["ends"] == {"told": 2}


async def test_the_last_requests_are_on_the_receipt(local: Callable[..., Deployment]) -> None:
    deployment = local("--nodes", "2")
    prompts = [f"{'i' * number} say something" for number in range(100)]
    chats = await stream_chats(deployment.endpoint, deployment.key, prompts, max_tokens=20)
    assert not [chat.error for chat in chats if chat.error]
    deployment.hpcserve("down")
    receipt = json.loads(deployment.hpcserve("receipt", "--json").stdout)
    assert receipt["num_requests"] == 100
    assert receipt["generated_tokens"] >= 2000


def test_ctrl_c_ends_an_attached_deployment_with_a_receipt_and_nothing_left(
    env: dict[str, str], state_root: Path
) -> None:
    said = (state_root / "stderr").open("w+")
    attached = subprocess.Popen(
        [HPCSERVE, "up", *LOCAL, "--port", "0"], env=env, stdout=subprocess.PIPE, stderr=said, text=True
    )
    try:
        assert attached.stdout is not None
        while "curl" not in attached.stdout.readline():
            assert attached.poll() is None
        attached.send_signal(signal.SIGINT)
        attached.stdout.read()
        assert attached.wait(30) == 0
    finally:
        attached.kill()
        attached.wait()
        assert attached.stdout is not None
        attached.stdout.close()
        said.seek(0)
        printed = said.read()
        said.close()
    assert not processes_of(state_root)
    assert "worker-hours, 1 worker, " in printed


async def test_a_client_that_hangs_up_frees_the_engine_within_a_second(two: Deployment) -> None:
    began = time.monotonic()
    two.status()
    asking_s = time.monotonic() - began
    chat = Chat()
    async with session_for(two.endpoint, "none") as session:
        running = asyncio.create_task(stream_chat(session, "go on", max_tokens=5000, model="mock", chat=chat))
        while chat.num_chunks < 5:
            await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    hung_up_at = time.monotonic()
    async with asyncio.timeout(1 + 2 * asking_s):  # a second, and what asking costs
        while any(worker["load"]["num_running"] for worker in two.status()["workers"]):
            await asyncio.sleep(0.05)
    print(f"the engine was free {time.monotonic() - hung_up_at:.1f} s after its client had hung up")


def test_a_worker_that_is_lost_shows_in_the_metrics(local: Callable[..., Deployment]) -> None:
    deployment = local("--nodes", "2")

    chats = asyncio.run(
        stream_chats_while(
            lambda: os.kill(deployment.up["workers"][0]["pid"], signal.SIGKILL),
            deployment.endpoint,
            "none",
            [f"{number}" for number in range(20)],
            max_tokens=300,
            after=5,
        )
    )
    assert {(chat.error, chat.usage["completion_tokens"]) for chat in chats} == {("", 300)}
    with urllib.request.urlopen(deployment.endpoint.removesuffix("/v1") + "/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    (count,) = (float(line.split()[1]) for line in lines if line.startswith("hpcserve_reassignments_total "))
    assert count >= 1
