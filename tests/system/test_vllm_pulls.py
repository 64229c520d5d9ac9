"""A prefix that is warm on one aggregated vLLM worker is pulled by another, behind the endpoint, with `hpcserve up`."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest

from tests.system.chats import session_for, stream_chats, stream_chats_while
from tests.system.conftest import Deployment
from tests.system.test_moving import num_moved
from tests.system.test_vllm_deployment import metric, settled
from tests.system.vllm_alone import SHARED, Alone, complete, sharing_prompts

pytestmark = [pytest.mark.real, pytest.mark.vllm, pytest.mark.timeout(300)]

SOON = ("--set", "cluster.drain_timeout_s=0.5")  # no stream ends by itself while its worker drains


async def counter(deployment: Deployment, name: str) -> float:
    """Return a counter of the frontend."""
    url = deployment.endpoint.removesuffix("/v1") + "/metrics"
    headers = {"Authorization": f"Bearer {deployment.key}"}
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as response:
        lines = (await response.text()).splitlines()
    return next(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name} "))


async def test_a_prefix_is_pulled_from_the_worker_that_is_busy_and_no_token_changes(
    deploy: Callable[..., Deployment], alone: Alone, tiny_model: Path
) -> None:
    arguments = ("--cluster", "local", "--model", str(tiny_model), "--set", "model.name=tiny")
    assert alone.num_pulls == 0
    deployment = deploy(*arguments, "--nodes", "2", "--set", "router.pull_latency_ms=0", *SOON, name="pulls")
    assert [worker["engine"]["kv_transport"] for worker in deployment.status()["workers"]] == ["nixl"] * 2
    first, *others = sharing_prompts()
    async with session_for(deployment.endpoint, deployment.key) as session:
        replies = [await complete(session, first)]
        # Reports follow the KV events that came before them, so by then the head knows who holds the prefix.
        await settled(deployment, "hpcserve_worker_prompt_tokens_total", "both", SHARED)
        replies += await asyncio.gather(*(complete(session, prompt) for prompt in others))
    assert replies == alone.to_sharing
    num_pulls = await counter(deployment, "hpcserve_prefix_pulls_total")
    assert num_pulls >= 1, deployment.log("head")
    assert await counter(deployment, "hpcserve_lost_prefix_pulls_total") == 0
    assert await counter(deployment, "hpcserve_pulled_prompt_tokens_total") >= SHARED // 32 * 32
    await settled(deployment, "hpcserve_worker_kv_pulled_tokens_total", "both", SHARED // 32 * 32)
    assert await metric(deployment, "hpcserve_worker_kv_pull_failures_total", "both") == 0
    await check_leaving(deployment)
    deployment.hpcserve("down")


async def check_leaving(deployment: Deployment) -> None:
    """One of the two workers has to go under streams, which go on at the other one with their KV."""
    contents = [f"question {number}: " + "why do queues form? " * 20 * number for number in range(1, 9)]
    undisturbed = await stream_chats(deployment.endpoint, deployment.key, contents, max_tokens=500, model="tiny")
    leaving = deployment.up["workers"][0]
    chats = await stream_chats_while(
        lambda: os.kill(leaving["pid"], signal.SIGTERM),
        deployment.endpoint,
        deployment.key,
        contents,
        max_tokens=500,
        model="tiny",
    )
    assert not [chat.error for chat in chats if chat.error]
    assert [chat.text for chat in chats] == [chat.text for chat in undisturbed]
    assert {chat.usage["completion_tokens"] for chat in chats} == {500}
    assert await num_moved(deployment, "pulled") >= 1, deployment.log("frontend") + deployment.log(leaving["id"])
    assert await num_moved(deployment, "recomputed") == 0, deployment.log(leaving["id"])
