"""Engines without KV events, in a real deployment: prompts go to where they were placed before."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tests.system.chats import stream_chats
from tests.system.conftest import Deployment

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]


def test_a_prompt_is_found_again_without_kv_events(deploy: Callable[..., Deployment]) -> None:
    events_off = ("--set", "engine.mock.kv_events=false")
    deployment = deploy("--cluster", "local", "--engine", "mock", "--nodes", "3", *events_off)
    cached = []
    for number in range(3):
        question = f"{number} who has asked this before me? " * 30
        for _ in range(2):
            (chat,) = asyncio.run(stream_chats(deployment.endpoint, deployment.key, [question], max_tokens=4))
            assert not chat.error
            cached.append(chat.usage["prompt_tokens_details"]["cached_tokens"])
    assert cached[::2] == [0, 0, 0]
    assert min(cached[1::2]) > 900
    deployment.hpcserve("down")
