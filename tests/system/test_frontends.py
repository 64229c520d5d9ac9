"""Two frontend processes of one deployment on one port: clients notice neither that, nor that one of them dies."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable

import pytest

from tests.system.chats import metric, session_for
from tests.system.conftest import Deployment

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

ROUTE = "/v1/completions"


@pytest.fixture
def two(deploy: Callable[..., Deployment]) -> Deployment:
    flags = ("--cluster", "local", "--engine", "mock", "--nodes", "2", "--set", "security.auth=on")
    return deploy(*flags, "--frontends", "2", "--set", "engine.mock.speedup=.inf")


def ask(deployment: Deployment, key: str) -> int:
    """Send one request over a connection of its own; return the status."""
    body = json.dumps({"model": "mock", "prompt": "hi", "max_tokens": 2}).encode()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json", "Connection": "close"}
    try:
        request = urllib.request.Request(deployment.endpoint + "/completions", body, headers)
        with urllib.request.urlopen(request, timeout=20) as reply:
            reply.read()
            return int(reply.status)
    except urllib.error.HTTPError as err:
        return err.code


def look(deployment: Deployment, key: str) -> int:
    """List the models, which costs nothing; return the status."""
    request = urllib.request.Request(deployment.endpoint + "/models", headers={"Authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as err:
        return err.code


async def counted(deployment: Deployment, name: str) -> float:
    """Read a metric over a connection of its own."""
    async with session_for(deployment.endpoint, deployment.key) as session:
        return await metric(session, name)


async def all_tell(deployment: Deployment, num_requests: int) -> None:
    """Wait until whoever is asked has counted so many; ten connections hardly ever reach one process only."""
    deadline = time.monotonic() + 20
    while (seen := [await counted(deployment, "hpcserve_request_success_total") for _ in range(10)]) != [
        num_requests
    ] * 10:
        assert time.monotonic() < deadline, seen


def num_served(deployment: Deployment, log: str) -> int:
    return deployment.log(log).count(f"POST {ROUTE} 200")


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline


async def test_both_serve_and_each_tells_the_sums(two: Deployment) -> None:
    assert len(set(two.status()["frontend_pids"])) == 2
    assert {ask(two, two.key) for _ in range(40)} == {200}
    served = [num_served(two, log) for log in ("frontend", "frontend-1")]
    assert sum(served) == 40
    assert min(served) > 0
    await all_tell(two, 40)
    assert await counted(two, "hpcserve_generation_tokens_total") == 80
    assert await counted(two, "hpcserve_tenant_requests_total") >= 40


async def test_one_dies_and_comes_back_while_the_other_goes_on(two: Deployment) -> None:
    first, second = two.status()["frontend_pids"]
    assert {ask(two, two.key) for _ in range(20)} == {200}
    await all_tell(two, 20)  # so the head knows: what was not reported yet would be lost
    os.kill(first, signal.SIGKILL)
    until(lambda: first not in two.status()["frontend_pids"])
    assert {ask(two, two.key) for _ in range(20)} == {200}
    until(lambda: len(two.status()["frontend_pids"]) == 2)
    pids = two.status()["frontend_pids"]
    assert second in pids
    assert first not in pids
    assert {ask(two, two.key) for _ in range(20)} == {200}
    await all_tell(two, 60)


def test_a_key_has_its_limits_once_and_its_use_is_added_up(two: Deployment) -> None:
    key = two.hpcserve("keys", "add", "alice", "--requests-per-minute", "6").stdout.strip()
    until(lambda: {look(two, key) for _ in range(10)} == {200})  # both have read the file of keys again
    statuses = [ask(two, key) for _ in range(20)]
    assert statuses == [200] * 6 + [429] * 14
    two.hpcserve("down")
    used = json.loads(two.hpcserve("usage", "--json").stdout)
    alice = next(each for each in used if each["name"] == "alice")
    assert alice["generated_tokens"] == 12
    assert alice["rate_limited"] == 14


def test_the_unix_socket_is_the_first_ones(deploy: Callable[..., Deployment], state_root) -> None:
    path = state_root / "s" / "api.sock"
    flags = ("--cluster", "local", "--engine", "mock", "--nodes", "1", "--set", "security.auth=off")
    deployment = deploy(*flags, "--frontends", "2", "--unix-socket", str(path))
    assert deployment.status()["unix_socket"] == str(path)
    assert "and" in next(line for line in deployment.log("frontend").splitlines() if "listening on" in line)
    until(lambda: "listening on http" in deployment.log("frontend-1"))
    assert str(path) not in deployment.log("frontend-1")
