"""The loop and the client against an endpoint that refuses, drops, fails and dies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_endpoint import FakeEndpoint, fake_endpoint

from hpcserve.batch import Batch, Client, Endpoint, Patience, Plan, Prompts, Stop, Tally, open_source
from hpcserve.batch import client as client_module
from hpcserve.batch.lines import Item
from hpcserve.batch.paths import Paths
from hpcserve.batch.store import Store
from hpcserve.errors import DeploymentError, HpcserveError

MODELS = {"mock": 100}


@pytest.fixture
async def endpoint() -> AsyncIterator[FakeEndpoint]:
    async with fake_endpoint() as fake:
        yield fake


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is waited for in vain."""
    monkeypatch.setattr(client_module.silence, "FIRST_DELAY_S", 0.001)
    monkeypatch.setattr("hpcserve.batch.run._GROUP_S", 0.02)


class Driver:
    """Runs of one directory."""

    def __init__(self, directory: Path, endpoint: FakeEndpoint) -> None:
        self.paths = Paths(directory / "out.jsonl")
        self.stop = Stop()
        self.tally = Tally(0)
        self._input = directory / "in.txt"
        self._endpoint = endpoint

    async def run(
        self,
        prompts: Sequence[str],
        patience: Patience | None = None,
        *,
        window: int = 8,
        grace_s: float = 5,
        priority: int = 0,
        tries_failed: bool = False,
    ) -> bool:
        self._input.write_text("".join(f"{prompt}\n" for prompt in prompts))
        self.stop = Stop()
        plan = Plan(open_source(self._input), Prompts("mock", {}), self.paths, tries_failed=tries_failed)
        async with Client(Endpoint(self._endpoint.url, "sk-x"), patience, priority=priority) as client:
            with plan.opened(MODELS) as work:
                self.tally = work.tally
                return await Batch(work, client, self.stop, window=window, grace_s=grace_s).run()

    def answers(self) -> dict[str, dict[str, Any]]:
        return self._read(self.paths.output)

    def failures(self) -> dict[str, dict[str, Any]]:
        return self._read(self.paths.errors)

    def reasons(self) -> dict[str, list[str]]:
        records = [json.loads(line[17:]) for line in self.paths.ledger.read_text().splitlines()]
        return {each["custom_id"]: each.get("reasons", []) for each in records if each["type"] == "done"}

    def _read(self, path: Path) -> dict[str, dict[str, Any]]:
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        by_id = {line["custom_id"]: line for line in lines}
        assert len(by_id) == len(lines), "each once"
        return by_id


@pytest.fixture
def driver(tmp_path: Path, endpoint: FakeEndpoint) -> Driver:
    return Driver(tmp_path, endpoint)


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_answers_are_written_as_openai_writes_them(driver: Driver) -> None:
    assert await driver.run(["one", "", "pretty two"])
    answers = driver.answers()
    assert list(answers) == ["line-1", "line-3"] or list(answers) == ["line-3", "line-1"]
    one = answers["line-1"]
    assert one["response"]["status_code"] == 200
    assert one["response"]["request_id"] == "id of one"
    assert one["response"]["body"]["text"] == "ONE"
    assert one["error"] is None
    assert one["id"].startswith("batch_req_")
    assert answers["line-3"]["response"]["body"]["text"] == "two\nlines"
    tally = driver.tally
    assert (tally.num_done, tally.prompt_tokens, tally.output_tokens, tally.cached_tokens) == (2, 20, 8, 10)


async def test_no_more_are_under_way_than_the_window_has_room_for(driver: Driver, endpoint: FakeEndpoint) -> None:
    assert await driver.run([f"number {i}" for i in range(300)], window=5)
    assert endpoint.most_running <= 5
    assert len(driver.answers()) == 300
    assert set(endpoint.asked.values()) == {1}


async def test_what_may_pass_is_tried_again(driver: Driver, endpoint: FakeEndpoint) -> None:
    assert await driver.run(["busy", "crash", "drop", "fine"])
    assert len(driver.answers()) == 4
    assert dict(endpoint.asked) == {"busy": 3, "crash": 2, "drop": 2, "fine": 1}
    reasons = driver.reasons()
    assert reasons["line-1"] == ["429: because of rate_limit_exceeded"] * 2
    assert reasons["line-2"] == ["500: because of engine_error"]
    assert reasons["line-3"][0].startswith("no answer: ServerDisconnectedError")
    assert reasons["line-4"] == []
    assert driver.tally.num_retries == 4


async def test_a_request_that_cannot_be_served_fails_alone(driver: Driver, endpoint: FakeEndpoint) -> None:
    assert await driver.run(["poison", "bad", *(f"fine {i}" for i in range(20))], Patience(attempts=3))
    assert len(driver.answers()) == 20
    failures = driver.failures()
    assert failures["line-1"]["response"]["status_code"] == 500
    assert failures["line-2"]["response"]["body"]["error"]["code"] == "context_length_exceeded"
    assert (endpoint.asked["poison"], endpoint.asked["bad"]) == (3, 1)
    assert driver.reasons()["line-1"] == ["500: because of engine_error"] * 3
    assert driver.tally.num_failed == 2
    assert await driver.run(["poison", "bad", *(f"fine {i}" for i in range(20))])
    assert endpoint.asked["poison"] == 3, "failed is finished"


async def test_what_failed_is_tried_again_when_asked_to(driver: Driver, endpoint: FakeEndpoint) -> None:
    prompts = ["crash", "bad", "fine", "drop"]
    assert await driver.run(prompts, Patience(attempts=1))
    assert sorted(driver.failures()) == ["line-1", "line-2", "line-4"]
    assert await driver.run(prompts, tries_failed=True)
    assert sorted(driver.answers()) == ["line-1", "line-3", "line-4"]
    assert sorted(driver.failures()) == ["line-2"]
    assert (driver.tally.num_finished, driver.tally.num_failed) == (4, 1)
    assert endpoint.asked["fine"] == 1
    assert await driver.run(prompts), "and what is finished then stays so"
    assert dict(endpoint.asked) == {"crash": 2, "bad": 2, "fine": 1, "drop": 2}
    assert await driver.run(prompts, tries_failed=True)
    assert endpoint.asked["bad"] == 3
    assert sorted(driver.failures()) == ["line-2"]


async def test_a_run_that_dies_before_it_empties_the_errors_file_goes_on(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(path: Path, size: int) -> None:
        if path == driver.paths.errors and size == 0:
            raise KeyboardInterrupt

    assert await driver.run(["crash", "fine"], Patience(attempts=1))
    with monkeypatch.context() as patched:
        patched.setattr("hpcserve.batch.recovery.os.truncate", die)
        with pytest.raises(KeyboardInterrupt):
            await driver.run(["crash", "fine"], tries_failed=True)
    assert await driver.run(["crash", "fine"])
    assert sorted(driver.answers()) == ["line-1", "line-2"]
    assert not driver.failures()


async def test_a_service_that_stays_away_fails_no_request(driver: Driver, endpoint: FakeEndpoint) -> None:
    prompts = [f"number {i}" for i in range(10)]
    endpoint.is_down = True
    with pytest.raises(DeploymentError, match=r"has answered nothing for .* because of no_worker_ready"):
        await driver.run(prompts, Patience(silence_s=0.05))
    assert not driver.failures()
    endpoint.is_down = False
    assert await driver.run(prompts)
    assert len(driver.answers()) == 10


async def test_nobody_there_fails_no_request(driver: Driver, endpoint: FakeEndpoint) -> None:
    url, endpoint.url = endpoint.url, "http://127.0.0.1:9/v1"
    with pytest.raises(DeploymentError, match="cannot connect"):
        await driver.run(["one"], Patience(silence_s=0.05))
    endpoint.url = url
    assert await driver.run(["one"])
    assert len(driver.answers()) == 1


async def test_a_model_that_is_no_longer_served_ends_the_run(driver: Driver) -> None:
    with pytest.raises(DeploymentError, match="answers 404: because of model_not_found"):
        await driver.run(["one", "gone"], window=1)
    assert not driver.failures()
    assert list(driver.answers()) == ["line-1"], "what was answered before is kept"


async def test_asked_to_stop_it_takes_no_more_and_lets_running_ones_end(driver: Driver, endpoint: FakeEndpoint) -> None:
    prompts = [f"slow {i}" for i in range(20)]
    running = asyncio.create_task(driver.run(prompts, window=4))
    await until(lambda: endpoint.num_running == 4)
    driver.stop.ask()
    await asyncio.sleep(0)
    endpoint.released.set()
    assert not await running
    assert len(driver.answers()) == 4
    assert await driver.run(prompts)
    assert len(driver.answers()) == 20
    assert set(endpoint.asked.values()) == {1}


async def test_asked_twice_it_leaves_running_ones(driver: Driver, endpoint: FakeEndpoint) -> None:
    running = asyncio.create_task(driver.run(["fast", "slow one", "slow two"], grace_s=60))
    await until(lambda: endpoint.num_running == 2 and driver.tally.num_done == 1)
    driver.stop.ask()
    driver.stop.ask()
    assert not await running
    assert list(driver.answers()) == ["line-1"]


async def test_running_ones_get_so_long_to_end(driver: Driver, endpoint: FakeEndpoint) -> None:
    running = asyncio.create_task(driver.run(["slow one"], grace_s=0.05))
    await until(lambda: endpoint.num_running == 1)
    driver.stop.ask()
    assert not await running
    assert not driver.answers()


async def test_a_disk_that_takes_no_more_ends_the_run(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Store, results: object) -> None:
        raise HpcserveError("cannot write: full")

    monkeypatch.setattr(Store, "write", refuse)
    with pytest.raises(HpcserveError, match="full"):
        await driver.run([f"number {i}" for i in range(5000)])


async def test_requests_run_behind_the_online_ones(driver: Driver, endpoint: FakeEndpoint) -> None:
    assert await driver.run(["one"], priority=100)
    assert endpoint.bodies[0]["priority"] == 100


async def test_a_busy_service_says_how_long_to_wait(
    driver: Driver, endpoint: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint.is_down, endpoint.retry_after = True, "7"
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.extend([seconds] if seconds else [])  # the endpoint yields with 0
        endpoint.is_down = False

    monkeypatch.setattr(client_module.asyncio, "sleep", sleep)
    async with Client(Endpoint(endpoint.url)) as client:
        item = Prompts("mock", {}).read(1, b"slow one")
        assert isinstance(item, Item)
        endpoint.released.set()
        assert (await client.ask(item)).status == 200
    assert len(waits) == 1
    assert 7 <= waits[0] < 8


async def test_models_are_those_that_are_served(endpoint: FakeEndpoint) -> None:
    async with Client(Endpoint(endpoint.url)) as client:
        assert await client.models() == {"mock": 100}
    async with Client(Endpoint(endpoint.url + "/nowhere")) as client:
        with pytest.raises(DeploymentError, match="answers 404"):
            await client.models()
    async with Client(Endpoint("http://127.0.0.1:9/v1")) as client:
        with pytest.raises(DeploymentError, match="cannot reach"):
            await client.models()
