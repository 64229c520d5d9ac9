"""Tenants of a real deployment with mock engines: keys come and go while it runs, and prefixes stay apart."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import openai
import pytest

from tests.system.chats import stream_chats
from tests.system.conftest import Deployment

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

QUESTION = "who else has asked this before me? " * 30


@pytest.fixture
def locked(deploy: Callable[..., Deployment]) -> Callable[..., Deployment]:
    flags = ("--cluster", "local", "--engine", "mock", "--nodes", "1", "--set", "security.auth=on")
    return lambda *arguments: deploy(*flags, *arguments)


def add(deployment: Deployment, tenant: str, *limits: str) -> str:
    return deployment.hpcserve("keys", "add", tenant, *limits).stdout.strip()


def cached(deployment: Deployment, key: str) -> int:
    """Ask the same as everybody; return how much of it was in a cache."""
    (chat,) = asyncio.run(stream_chats(deployment.endpoint, key, [QUESTION], max_tokens=4))
    assert not chat.error
    return int(chat.usage["prompt_tokens_details"]["cached_tokens"])


def ask(deployment: Deployment, key: str) -> Any:
    with openai.OpenAI(base_url=deployment.endpoint, api_key=key, max_retries=0) as client:
        return client.completions.create(model="mock", prompt="hi", max_tokens=1)


def is_known(deployment: Deployment, key: str) -> bool:
    try:
        with openai.OpenAI(base_url=deployment.endpoint, api_key=key, max_retries=0) as client:
            client.models.list()
    except openai.AuthenticationError:
        return False
    return True


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for the frontend to look at the file of keys again, which it does once a second."""
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline


def test_tenants_come_and_go_while_it_runs_and_share_no_prefix(locked: Callable[..., Deployment]) -> None:
    deployment = locked()
    alice, bob = add(deployment, "alice"), add(deployment, "bob", "--requests-per-minute", "3")
    wait_until(lambda: is_known(deployment, bob))
    assert cached(deployment, alice) == 0
    assert cached(deployment, bob) == 0
    assert cached(deployment, deployment.key) == 0
    assert cached(deployment, alice) > 900
    assert cached(deployment, bob) > 900
    ask(deployment, bob)
    with pytest.raises(openai.RateLimitError, match="limited to 3 requests a minute") as refused:
        ask(deployment, bob)
    assert 1 <= int(refused.value.response.headers["Retry-After"]) <= 20
    assert [each["name"] for each in json.loads(deployment.hpcserve("keys", "list", "--json").stdout)] == [
        "alice",
        "bob",
    ]
    deployment.hpcserve("keys", "revoke", "alice")
    wait_until(lambda: not is_known(deployment, alice))
    ask(deployment, deployment.key)
    secrets = [alice, bob, deployment.key, (deployment.state_dir / "salt-secret").read_text().strip()]
    assert not [each for log in ("head", "frontend") for each in secrets if each in deployment.log(log)]


def test_prefixes_are_shared_where_the_configuration_says_so(locked: Callable[..., Deployment]) -> None:
    deployment = locked("--set", "security.share_prefixes=true")
    alice = add(deployment, "alice")
    wait_until(lambda: is_known(deployment, alice))
    assert cached(deployment, deployment.key) == 0
    assert cached(deployment, alice) > 900
