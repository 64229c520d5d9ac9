"""One slow mock worker and more requests than it can take: who waits, who is refused, who hangs up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import aiohttp
import pytest

from tests.system.chats import metric, session_for
from tests.system.conftest import Deployment

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

MOST = 4
SLOW = (
    *("--cluster", "local", "--engine", "mock", "--nodes", "1"),
    *("--set", "engine.mock.speedup=0.03", "--set", f"router.queue.max_requests={MOST}"),
)


@dataclass
class Reply:
    """What became of one request."""

    status: int
    retry_after: str | None = None
    code: str | None = None
    num_prompt_tokens: int = 0


async def ask(session: aiohttp.ClientSession, name: str) -> Reply:
    """Stream a completion of a prompt that shares nothing with others and takes two seconds to compute."""
    prompt = f"{name} waits for an answer. " * 100
    body = {"model": "mock", "prompt": prompt, "max_tokens": 3, "stream": True, "ignore_eos": True}
    body["stream_options"] = {"include_usage": True}
    async with session.post("completions", json=body) as response:
        text = await response.text()
        if response.status != 200:
            code = json.loads(text)["error"]["code"]
            return Reply(response.status, response.headers.get("Retry-After"), code)
    *_, usage, done = [line for line in text.splitlines() if line]
    assert done == "data: [DONE]"
    return Reply(200, num_prompt_tokens=json.loads(usage.removeprefix("data: "))["usage"]["prompt_tokens"])


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await condition():
            await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
def deployment(deploy_shared: Callable[..., Deployment]) -> Deployment:
    return deploy_shared(*SLOW)


async def test_more_than_may_wait_are_refused_and_the_others_served(deployment: Deployment) -> None:
    async with session_for(deployment.endpoint, "none") as session:
        replies = await asyncio.gather(*(ask(session, f"client {number}") for number in range(12)))
        served = [each for each in replies if each.status == 200]
        refused = [each for each in replies if each.status != 200]
        assert len(served) in (MOST + 1, MOST + 2), "one or two that run, and those that wait"
        assert {(each.status, each.code) for each in refused} == {(503, "overloaded")}
        assert all(each.retry_after is not None and int(each.retry_after) >= 1 for each in refused)
        assert await metric(session, "hpcserve_overloaded_total") == len(refused)
        assert await metric(session, "hpcserve_queue_seconds_count") == len(served)
        assert await metric(session, "hpcserve_queue_seconds_sum") > 2


async def test_who_hangs_up_while_waiting_never_reaches_the_engine(deployment: Deployment) -> None:
    async with session_for(deployment.endpoint, "none") as session:

        async def num_taken() -> float:
            return await metric(session, "hpcserve_worker_prompt_tokens_total")

        async def waiting(number: int) -> bool:
            return await metric(session, "hpcserve_waiting_requests") == number

        before = await num_taken()
        first = asyncio.create_task(ask(session, "the first"))
        await until(lambda: _is_running(session))
        others = [asyncio.create_task(ask(session, f"number {number}")) for number in range(MOST)]
        await until(lambda: waiting(MOST))
        for each in others[1:]:
            each.cancel()
        served = [await first, await others[0], await ask(session, "the last")]
        expected = before + sum(each.num_prompt_tokens for each in served)

        async def has_told() -> bool:
            return await num_taken() >= expected

        await until(has_told)
        await until(lambda: waiting(0))
        assert await num_taken() == expected
        assert await metric(session, "hpcserve_client_disconnects_total") == MOST - 1


async def _is_running(session: aiohttp.ClientSession) -> bool:
    return await metric(session, "hpcserve_worker_num_requests_running") == 1


async def test_a_deployment_that_goes_down_refuses_those_that_wait(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy(*SLOW)
    async with session_for(deployment.endpoint, "none") as session:
        asked = [asyncio.create_task(ask(session, f"client {number}")) for number in range(MOST)]

        async def some_wait() -> bool:
            return await metric(session, "hpcserve_waiting_requests") >= 2

        await until(some_wait)
        await asyncio.to_thread(deployment.hpcserve, "down")
        replies = await asyncio.gather(*asked)
    assert {each.status for each in replies} == {200, 503}
    assert {each.code for each in replies if each.status == 503} == {"no_worker_ready"}
