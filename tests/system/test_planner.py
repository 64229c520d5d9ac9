"""The planner on real deployments of this machine with mock engines: roles follow the load, and so do numbers."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.system.chats import Chat, session_for, stream_chat
from tests.system.conftest import Deployment

pytestmark = [pytest.mark.real, pytest.mark.timeout(150)]

LOCAL = ("--cluster", "local", "--engine", "mock", "--set", "planner.enabled=true", "--set", "planner.interval_s=0.5")
SPLIT = ("--prefill", "1", "--decode", "3", "--set", "planner.flip_pause_s=1", "--set", "planner.ttft_ms=400")
SLOW_DECODING = ("--set", "engine.mock.num_kv_blocks=2048", "--set", "planner.itl_ms=25")
SIZED = ("--nodes", "1", "--set", "planner.min_workers=0", "--set", "planner.max_workers=2")
SOON = ("--set", "planner.shrink_s=4", "--set", "planner.idle_s=3", "--set", "planner.ttft_ms=300")

WORDS = "one prompt needs many words to be long, and all begin differently "


def prompt(number: int, num_words: int) -> str:
    """Return a prompt that no other shares a prefix with, of a length of its own."""
    return f"{number * 7919} " + (WORDS * (num_words // 12 + 1))[: num_words * 5 + number]


def roles(deployment: Deployment) -> dict[str, str]:
    return {each["id"]: each["role"] for each in deployment.status()["workers"] if each["state"] == "ready"}


def num_of(role: str, deployment: Deployment) -> int:
    return list(roles(deployment).values()).count(role)


async def until(what: Callable[[], bool], timeout_s: float = 90.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not await asyncio.to_thread(what):
        assert time.monotonic() < deadline, "it did not happen"


async def load_until(
    what: Callable[[], bool],
    deployment: Deployment,
    *,
    every_s: float,
    num_words: int,
    max_tokens: int,
    first: int,
) -> list[Chat]:
    """Send chats one after another until something has become true, and return what they all said in the end."""
    running: list[asyncio.Task[Chat]] = []
    async with session_for(deployment.endpoint, deployment.key) as session, asyncio.TaskGroup() as group:
        happened = group.create_task(until(what))
        while not happened.done():
            content = prompt(first + len(running), num_words)
            task = stream_chat(session, content, max_tokens=max_tokens, model="mock")
            running.append(group.create_task(task))
            await asyncio.wait((happened,), timeout=every_s)
    return [task.result() for task in running]


async def again(deployment: Deployment, chats: list[Chat], *, num_words: int, max_tokens: int, first: int) -> list[str]:
    """Return what some of the same chats say on a deployment that is at rest."""
    async with session_for(deployment.endpoint, deployment.key) as session:
        contents = [prompt(first + number, num_words) for number in range(min(8, len(chats)))]
        replies = (stream_chat(session, each, max_tokens=max_tokens, model="mock") for each in contents)
        return [chat.text for chat in await asyncio.gather(*replies)]


def decisions(deployment: Deployment) -> list[dict[str, Any]]:
    path = deployment.state_dir / "plan.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def flips(deployment: Deployment) -> list[str]:
    """Return to which roles workers were turned, oldest first."""
    return [each["decision"]["role"] for each in decisions(deployment)]


def assert_whole(chats: list[Chat], max_tokens: int) -> None:
    assert chats
    assert [chat.error for chat in chats if chat.error] == []
    assert {chat.usage.get("completion_tokens") for chat in chats} == {max_tokens}


async def test_roles_follow_the_load_and_no_request_notices(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy(*LOCAL, *SPLIT, *SLOW_DECODING)
    before = roles(deployment)
    prompts = {"num_words": 4000, "max_tokens": 6, "first": 1}
    chats = await load_until(lambda: flips(deployment).count("prefill") >= 1, deployment, every_s=0.2, **prompts)
    assert_whole(chats, 6)
    assert await again(deployment, chats, **prompts) == [chat.text for chat in chats[:8]]

    answers = {"num_words": 300, "max_tokens": 200, "first": 1001}
    chats = await load_until(lambda: flips(deployment).count("decode") >= 1, deployment, every_s=0.05, **answers)
    assert_whole(chats, 200)
    assert await again(deployment, chats, **answers) == [chat.text for chat in chats[:8]]

    assert set(roles(deployment)) == set(before), "nothing was started or ended"
    assert num_of("prefill", deployment) == 1 + flips(deployment).count("prefill") - flips(deployment).count("decode")
    report = json.loads(deployment.hpcserve("plan", "--json").stdout)
    assert [each["text"] for each in report["lines"]] == [each["text"] for each in decisions(deployment)][-20:]
    assert "becomes a decode worker: prompts need" in deployment.hpcserve("plan").stdout


async def test_workers_come_with_the_load_and_go_and_a_request_wakes_the_first(
    deploy: Callable[..., Deployment],
) -> None:
    deployment = deploy(*LOCAL, *SIZED, *SOON)
    load = {"num_words": 4000, "max_tokens": 6, "first": 1}
    chats = await load_until(lambda: num_of("both", deployment) == 2, deployment, every_s=0.15, **load)
    assert_whole(chats, 6)
    await until(lambda: not roles(deployment))
    status = deployment.status()
    assert (status["phase"], status["wanted"]) == ("serving", {"both": 0})
    assert await again(deployment, chats, **load) == [chat.text for chat in chats[:8]]
    assert num_of("both", deployment) >= 1
    texts = [each["text"] for each in decisions(deployment)]
    assert any("nobody has asked for anything" in text for text in texts)
    assert any("wait, and there is no worker" in text for text in texts)
