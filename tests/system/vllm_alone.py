"""What one vLLM worker answers that shares nothing with others: what deployments of several are held against."""

from __future__ import annotations

import asyncio
import os
import random
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from tests.fixtures_deployment import Deployment, deploying, temporary_state_root
from tests.system.chats import metric, session_for

MAX_TOKENS = 24
SHARED = 2000  # tokens
TAILS = (1500, 40, 70, 100, 130, 160)  # the first keeps the holder of the prefix computing

Reply = tuple[list[str], str]
"""Its tokens, as text, and its text."""


@dataclass(frozen=True)
class Alone:
    """Replies to the prompts of the two functions below."""

    to_unlike: list[Reply]
    to_sharing: list[Reply]
    num_pulls: float


def unlike_prompts() -> list[list[int]]:
    """Twenty prompts of 50 to 3,000 tokens, as token ids of the small model."""
    choice = random.Random(7)
    lengths = [50, 3000, *(choice.randrange(50, 3000) for _ in range(18))]
    return [[choice.randrange(300, 2000) for _ in range(length)] for length in lengths]


def sharing_prompts() -> list[list[int]]:
    """The shared prefix alone, and then with one tail each."""
    choice = random.Random(23)
    shared, *tails = ([choice.randrange(300, 2000) for _ in range(length)] for length in (SHARED, *TAILS))
    return [shared, *(shared + tail for tail in tails)]


async def complete(session: aiohttp.ClientSession, prompt: list[int]) -> Reply:
    """Return the reply's tokens as far as the API tells them (by text and count) and its text."""
    body = {"model": "tiny", "prompt": prompt, "max_tokens": MAX_TOKENS, "temperature": 0, "ignore_eos": True}
    async with session.post("completions", json=body | {"logprobs": 0}) as response:
        answer = await response.json()
        assert response.status == 200, answer
    choice = answer["choices"][0]
    return choice["logprobs"]["tokens"], choice["text"]


@pytest.fixture(scope="session")
def alone(tiny_model: Path) -> Alone:
    """Ask a worker of its own, once for all tests."""
    flags = ("--cluster", "local", "--model", str(tiny_model), "--set", "model.name=tiny", "--nodes", "1")
    with temporary_state_root() as root, deploying(os.environ | {"HPCSERVE_STATE_DIR": str(root)}) as up:
        return asyncio.run(_ask(up(*flags)))


async def _ask(deployment: Deployment) -> Alone:
    async with session_for(deployment.endpoint, deployment.key) as session:
        to_unlike = [await complete(session, prompt) for prompt in unlike_prompts()]
        to_sharing = [await complete(session, prompt) for prompt in sharing_prompts()]
        return Alone(to_unlike, to_sharing, await metric(session, "hpcserve_prefix_pulls_total"))
