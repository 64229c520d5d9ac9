"""Real vLLM engines behind the endpoint: prefill and decode over NIXL, on this machine and on Slurm."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from tests.fixtures_devcluster import DevCluster
from tests.system.chats import Chat, session_for, stream_chat, stream_chats, stream_chats_while
from tests.system.conftest import Deployment
from tests.system.vllm_alone import Alone, Reply, complete, unlike_prompts

pytestmark = [pytest.mark.real, pytest.mark.vllm, pytest.mark.timeout(300)]


async def replies(deployment: Deployment, *, at_once: bool) -> list[Reply]:
    async with session_for(deployment.endpoint, deployment.key) as session:
        if at_once:
            return list(await asyncio.gather(*(complete(session, prompt) for prompt in unlike_prompts())))
        return [await complete(session, prompt) for prompt in unlike_prompts()]


async def metric(deployment: Deployment, name: str, pool: str) -> float:
    url = deployment.endpoint.removesuffix("/v1") + "/metrics"
    headers = {"Authorization": f"Bearer {deployment.key}"}
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as response:
        lines = (await response.text()).splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f'{name}{{worker="{pool}-'))


async def settled(deployment: Deployment, name: str, pool: str, at_least: float) -> float:
    """Wait until a counter of the workers, reported a few times a second, has arrived."""
    async with asyncio.timeout(5):
        while (value := await metric(deployment, name, pool)) < at_least:
            await asyncio.sleep(0.1)
    return value


async def test_disaggregated_replies_equal_aggregated_ones_token_for_token(
    deploy: Callable[..., Deployment], alone: Alone, tiny_model: Path
) -> None:
    arguments = ("--cluster", "local", "--model", str(tiny_model), "--set", "model.name=tiny")
    expected = alone.to_unlike
    disaggregated = deploy(*arguments, "--prefill", "1", "--decode", "1", name="dis")
    num_tokens = sum(len(prompt) for prompt in unlike_prompts())
    assert await replies(disaggregated, at_once=False) == expected
    pulled = await settled(disaggregated, "hpcserve_worker_kv_pulled_tokens_total", "decode", num_tokens * 0.9)
    assert pulled <= num_tokens
    assert await metric(disaggregated, "hpcserve_worker_kv_pull_failures_total", "decode") == 0
    assert await replies(disaggregated, at_once=True) == expected
    await check_openai_client(disaggregated)
    await check_hanging_up(disaggregated)
    disaggregated.hpcserve("down")


async def test_a_killed_vllm_worker_changes_no_token(deploy: Callable[..., Deployment], tiny_model: Path) -> None:
    deployment = deploy("--cluster", "local", "--model", str(tiny_model), "--set", "model.name=tiny", "--nodes", "2")
    contents = [f"question {number}: why do queues form, and where do they end?" for number in range(8)]
    undisturbed = await stream_chats(deployment.endpoint, deployment.key, contents, max_tokens=300, model="tiny")
    chats = await stream_chats_while(
        lambda: os.kill(deployment.up["workers"][0]["pid"], signal.SIGKILL),
        deployment.endpoint,
        deployment.key,
        contents,
        max_tokens=300,
        model="tiny",
    )
    assert not [chat.error for chat in chats if chat.error]
    assert "moving it" in deployment.log("frontend")
    assert [chat.text for chat in chats] == [chat.text for chat in undisturbed]
    assert {chat.usage["completion_tokens"] for chat in chats} == {300}


async def check_openai_client(deployment: Deployment) -> None:
    question: Any = [{"role": "user", "content": "explain prefix caching " * 40}]
    async with openai.AsyncOpenAI(base_url=deployment.endpoint, api_key=deployment.key) as client:
        whole = await client.chat.completions.create(model="tiny", messages=question, max_tokens=8, temperature=0)
        stream = await client.chat.completions.create(
            model="tiny", messages=question, max_tokens=8, temperature=0, stream=True
        )
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == whole.choices[0].message.content
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 8


async def check_hanging_up(deployment: Deployment) -> None:
    chat = Chat()
    async with session_for(deployment.endpoint, deployment.key) as session:
        running = asyncio.create_task(stream_chat(session, "go on", max_tokens=4000, model="tiny", chat=chat))
        while chat.num_chunks < 5:
            await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    async with asyncio.timeout(3):  # a second, the time between two reports, and what asking costs
        while await metric(deployment, "hpcserve_worker_num_requests_running", "decode"):
            await asyncio.sleep(0.05)


@pytest.mark.slurm
async def test_vllm_engines_in_slurm_jobs_prefill_and_decode(
    slurm: DevCluster, env: dict[str, str], deploy: Callable[..., Deployment], tiny_model: Path
) -> None:
    env["SLURM_CONF"] = str(slurm.conf)
    started = time.monotonic()
    deployment = deploy(
        "--cluster", "slurm", "--nodes", "2", "--mode", "disaggregated", "--model", str(tiny_model),
        "--set", "model.name=tiny", "--set", "cluster.local.threads=1",
    )  # fmt: skip
    print(f"two vLLM engines READY on Slurm {time.monotonic() - started:.1f} s after `up`")
    first = await replies(deployment, at_once=True)
    assert await settled(deployment, "hpcserve_worker_kv_pulled_tokens_total", "decode", 1000)
    assert len(first) == 20
    deployment.hpcserve("down")
    assert slurm.slurm("squeue", "--noheader") == ""
