"""A worker that is told to leave under streams: they go on elsewhere with their KV, and no text changes."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests.system.chats import metric, session_for, stream_chats, stream_chats_while
from tests.system.conftest import Deployment

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

MOCK = ("--cluster", "local", "--engine", "mock", "--nodes", "3", "--set", "cluster.drain_timeout_s=2")
SHARED = "You answer questions about waiting, briefly and to the point. " * 10
MAX_TOKENS = 600  # four seconds: no stream ends while the worker drains


async def num_moved(deployment: Deployment, kind: str) -> float:
    """Return how many streams were moved: "pulled" or "recomputed"."""
    async with session_for(deployment.endpoint, deployment.key) as session, session.get("/metrics") as response:
        lines = (await response.text()).splitlines()
    name = f'hpcserve_move_pause_seconds_count{{kv="{kind}"}} '
    return next(float(line.split()[-1]) for line in lines if line.startswith(name))


async def ask_for_six(deployment: Deployment) -> dict[str, Any]:
    """Return the whole answer to one request for six choices, on as many workers as there are."""
    body = {
        "model": "mock", "messages": [{"role": "user", "content": "and six times?"}], "n": 6, "max_tokens": MAX_TOKENS,
        "temperature": 0, "ignore_eos": True, "logprobs": True,
    }  # fmt: skip
    async with (
        session_for(deployment.endpoint, deployment.key) as session,
        session.post("chat/completions", json=body) as response,
    ):
        answer: dict[str, Any] = await response.json()
    assert [choice["index"] for choice in answer["choices"]] == list(range(6)), answer
    return {"choices": answer["choices"], "usage": answer["usage"]}


async def test_streams_of_a_leaving_worker_go_on_with_their_kv(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy(*MOCK)
    contents = [SHARED + f"question {number}: " + "why do queues form? " * 10 * number for number in range(1, 13)]
    undisturbed = await stream_chats(deployment.endpoint, deployment.key, contents, max_tokens=MAX_TOKENS)
    six_undisturbed = await ask_for_six(deployment)
    async with session_for(deployment.endpoint, deployment.key) as session:
        pulled_before = await metric(session, "hpcserve_worker_kv_pulled_tokens_total")
    leaving = deployment.up["workers"][0]
    six = asyncio.create_task(ask_for_six(deployment))
    chats = await stream_chats_while(
        lambda: os.kill(leaving["pid"], signal.SIGTERM),
        deployment.endpoint,
        deployment.key,
        contents,
        max_tokens=MAX_TOKENS,
    )
    assert not [chat.error for chat in chats if chat.error]
    assert [chat.text for chat in chats] == [chat.text for chat in undisturbed]
    assert {chat.usage["completion_tokens"] for chat in chats} == {MAX_TOKENS}
    assert [chat.usage["prompt_tokens"] for chat in chats] == [chat.usage["prompt_tokens"] for chat in undisturbed]
    assert await six == six_undisturbed
    assert await num_moved(deployment, "pulled") >= 1, deployment.log("frontend")
    assert await num_moved(deployment, "recomputed") == 0
    async with session_for(deployment.endpoint, deployment.key) as session:
        assert await metric(session, "hpcserve_worker_kv_pulled_tokens_total") > pulled_before
    log = deployment.log(leaving["id"])
    assert re.search(r"[1-9]\d* of \d+ hot prefixes are on both-", log), log
    deployment.hpcserve("down")
