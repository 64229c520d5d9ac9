"""Units of offline requests as Dask tasks: where they go, what they are called, and what becomes of them when lost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from dask_deployment import BROKEN, POISON, Deployment, Taken, completion, deployed

from hpcserve.batch import Patience
from hpcserve.batch.dask_service import DaskService
from hpcserve.batch.unit import Unit
from hpcserve.config import Config
from hpcserve.errors import DeploymentError
from hpcserve.types import Role

pytestmark = [
    # distributed leaves sockets and event loops to the garbage collector when a scheduler is closed under a worker
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

BLOCK = 16
Deploy = Callable[..., Any]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is waited for in vain."""
    monkeypatch.setattr("hpcserve.batch.silence.FIRST_DELAY_S", 0.01)
    monkeypatch.setattr("hpcserve.batch.dask_tasks._CHECK_S", 0.02)


@pytest.fixture
async def deploy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Deploy]:
    async with AsyncExitStack() as stack:

        async def start(*roles: Role, **changes: Any) -> Deployment:
            settings: dict[str, Any] = {
                "model": {"name": "mock"},
                "engine": {"kind": "mock", "block_size": BLOCK, "mock": {"speedup": float("inf")}},
                "cluster": {"kind": "local", "drain_timeout_s": 1},
                **changes,
            }
            config = Config.model_validate(settings)
            return await stack.enter_async_context(deployed(tmp_path, config, roles or (Role.BOTH,) * 2, monkeypatch))

        yield start


def service_of(deployment: Deployment, patience: Patience | None = None, **options: Any) -> DaskService:
    return DaskService(deployment.state, deployment.config, patience, **options)


def unit(number: int, prompts: list[list[int]], **fields: Any) -> Unit:
    first = number * 1000
    return Unit(number, tuple(completion(first + index, each, **fields) for index, each in enumerate(prompts)))


def prompts(start: int, num: int = 4, length: int = 40) -> list[list[int]]:
    return [[10, start % 200 + 20, index + 20] + [30] * length for index in range(num)]


async def test_a_unit_is_one_task_with_a_name_that_means_something(deploy: Deploy) -> None:
    deployment = await deploy(Role.BOTH)
    taken = Taken()
    async with service_of(deployment) as service:
        assert service.models() == {"mock": deployment.roster.workers()[0].engine.max_model_len}
        await service.run(unit(7, prompts(1)), taken.take)
    assert taken.statuses() == {f"c{7000 + index}": 200 for index in range(4)}
    body = json.loads(taken.replies["c7000"].body)
    assert (body["object"], body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (
        "text_completion",
        43,
        4,
    )
    assert "completion" in deployment.scheduler.task_prefixes
    assert not deployment.scheduler.tasks, "nothing is kept"
    assert len(deployment.units.book) == 0
    assert deployment.units.book.work() == {}


async def test_units_go_where_their_prefix_is_and_others_are_spread(deploy: Deploy) -> None:
    deployment = await deploy()
    documents = [[40 + number] * (BLOCK * 6) for number in range(4)]
    taken = Taken()
    async with service_of(deployment) as service:
        for turn in range(3):
            units = [
                unit(turn * 4 + number, [[*text, turn + 20, index + 20] for index in range(3)])
                for number, text in enumerate(documents)
            ]
            deployment.seen.may_run.clear()  # one that has ended would be no work that the next is spread by
            running = [asyncio.create_task(service.run(each, taken.take)) for each in units]
            await deployment.until(lambda: len(deployment.units.book) == len(documents))
            deployment.seen.may_run.set()
            await asyncio.gather(*running)
    homes: dict[int, set[str]] = {}
    for worker, request in deployment.seen.started:
        homes.setdefault(request.token_ids[0], set()).add(worker)
    assert [len(each) for each in homes.values()] == [1, 1, 1, 1], "each document has one worker"
    assert len(set.union(*homes.values())) == 2, "and both have some"
    assert set(taken.statuses().values()) == {200}
    usages = [json.loads(each.body)["usage"] for each in taken.replies.values()]
    hits = sum(each["prompt_tokens_details"]["cached_tokens"] >= BLOCK * 6 for each in usages)
    assert hits >= 2 * 3 * 4, "all but those of the first turn, at least"


async def test_what_a_lost_worker_had_runs_elsewhere(deploy: Deploy) -> None:
    deployment = await deploy()
    deployment.seen.may_run.clear()
    taken = Taken()
    async with service_of(deployment) as service:
        running = asyncio.create_task(service.run(unit(0, prompts(1)), taken.take))
        await deployment.until(lambda: len(deployment.seen.started) == 4)
        lost = deployment.seen.started[0][0]
        deployment.drop(lost)
        await deployment.until(lambda: len(deployment.seen.started) >= 8)
        assert {worker for worker, _ in deployment.seen.started[4:8]} != {lost}
        deployment.seen.may_run.set()
        await running
    assert list(taken.statuses().values()) == [200] * 4
    assert all(reply.attempts == 1 for reply in taken.replies.values()), "Dask did it"


async def test_a_poison_prompt_fails_alone(deploy: Deploy) -> None:
    deployment = await deploy(*(Role.BOTH,) * 8)
    items = [*prompts(1, 3), [POISON, 1, 2], *prompts(2, 3)]
    taken = Taken()
    async with service_of(deployment, Patience(attempts=3)) as service:
        await service.run(unit(0, items), taken.take)
    statuses = list(taken.statuses().items())
    assert ("c3", 500) in statuses
    assert [status for name, status in statuses if name != "c3"] == [200] * 6
    told = json.loads(taken.replies["c3"].body)["error"]
    assert "the engine died of it" in told["message"]
    assert taken.replies["c3"].attempts == 3
    assert len(taken.replies["c3"].reasons) == 3


async def test_a_request_that_fails_is_tried_again_and_fails_alone(deploy: Deploy) -> None:
    deployment = await deploy(Role.BOTH)
    taken = Taken()
    async with service_of(deployment, Patience(attempts=2)) as service:
        await service.run(unit(0, [*prompts(1, 2), [BROKEN, 1, 2]]), taken.take)
    assert taken.statuses() == {"c0": 200, "c1": 200, "c2": 500}
    assert taken.replies["c2"].reasons == ("500: does not work",) * 2
    assert len(deployment.seen.started) == 4


async def test_what_the_endpoint_would_refuse_is_refused(deploy: Deploy) -> None:
    deployment = await deploy(Role.BOTH)
    taken = Taken()
    too_long = [20] * 200_000
    async with service_of(deployment) as service:
        await service.run(unit(0, [*prompts(1, 1), too_long]), taken.take)
        assert taken.statuses() == {"c0": 200, "c1": 400}
        assert json.loads(taken.replies["c1"].body)["error"]["code"] == "context_length_exceeded"
        with pytest.raises(DeploymentError, match="not served"):
            await service.run(unit(1, prompts(1, 1), model="other"), taken.take)


async def test_cancelling_aborts_in_the_engine_and_leaves_nothing(deploy: Deploy) -> None:
    deployment = await deploy(Role.BOTH)
    deployment.seen.may_run.clear()
    async with service_of(deployment) as service:
        running = asyncio.create_task(service.run(unit(0, prompts(1)), Taken().take))
        await deployment.until(lambda: len(deployment.seen.started) == 4)
        running.cancel()
        await deployment.until(lambda: len(deployment.seen.aborted) == 4)
        await deployment.until(lambda: not deployment.scheduler.tasks)
    assert len(deployment.units.book) == 0


async def test_a_driver_that_is_lost_takes_its_units_along(deploy: Deploy) -> None:
    deployment = await deploy(Role.BOTH)
    deployment.seen.may_run.clear()
    async with service_of(deployment) as service:
        running = asyncio.create_task(service.run(unit(0, prompts(1)), Taken().take))
        await deployment.until(lambda: len(deployment.seen.started) == 4)
        client = next(iter(deployment.scheduler.clients.keys() - {"fire-and-forget"}))
        deployment.scheduler.client_comms[client].abort()
        await deployment.until(lambda: len(deployment.seen.aborted) == 4)
        await deployment.until(lambda: len(deployment.seen.started) == 8)  # it was its connection only: it is back
        running.cancel()


async def test_units_wait_for_a_worker_that_is_ready(deploy: Deploy) -> None:
    deployment = await deploy(Role.BOTH)
    first = next(iter(deployment.agents))
    deployment.seen.may_run.clear()
    taken = Taken()
    async with service_of(deployment) as service:
        running = asyncio.create_task(service.run(unit(0, prompts(1)), taken.take))
        await deployment.until(lambda: len(deployment.seen.started) == 4)
        deployment.agents[first][1].cancel()
        await deployment.until(lambda: not deployment.roster.ready())
        await deployment.until(lambda: len(deployment.scheduler.unrunnable) == 1)
        deployment.seen.may_run.set()
        await deployment.add("both-1-bbbb")
        await running
    assert list(taken.statuses().values()) == [200] * 4


async def test_a_scheduler_that_is_gone_fails_no_request(deploy: Deploy) -> None:
    deployment = await deploy(Role.BOTH)
    deployment.seen.may_run.clear()
    taken = Taken()
    async with service_of(deployment, Patience(silence_s=0.1)) as service:
        running = asyncio.create_task(service.run(unit(0, prompts(1)), taken.take))
        await deployment.until(lambda: len(deployment.seen.started) == 4)
        deployment.state.clear_head()
        await deployment.scheduler.close()
        with pytest.raises(DeploymentError, match="has answered nothing for"):
            await asyncio.wait_for(running, 10)
    assert not taken.replies


async def test_prompts_are_computed_and_decoded_in_two_stages(deploy: Deploy) -> None:
    deployment = await deploy(
        Role.PREFILL,
        Role.DECODE,
        pools={"mode": "disaggregated", "prefill": 1, "decode": 1},
        router={"min_remote_prefill_tokens": 16},
    )
    taken = Taken()
    async with service_of(deployment) as service:
        await service.run(unit(0, prompts(1)), taken.take)
        await service.run(unit(1, [[20, 21]]), taken.take)  # not worth it
    assert set(taken.statuses().values()) == {200}
    on = {(name.split("-")[0], each.prefill_only, each.kv is not None) for name, each in deployment.seen.started}
    assert on == {("prefill", True, False), ("decode", False, True), ("decode", False, False)}
    assert {"completion-prefill", "completion-decode", "completion"} <= set(deployment.scheduler.task_prefixes)


async def test_without_prefill_workers_decode_workers_compute_prompts(deploy: Deploy) -> None:
    deployment = await deploy(
        Role.DECODE,
        pools={"mode": "disaggregated", "prefill": 1, "decode": 1},
        router={"min_remote_prefill_tokens": 16},
    )
    taken = Taken()
    async with service_of(deployment) as service:
        await service.run(unit(0, prompts(1)), taken.take)
    assert set(taken.statuses().values()) == {200}
    assert not any(request.prefill_only for _, request in deployment.seen.started)


async def test_requests_are_of_the_priority_that_was_given(deploy: Deploy) -> None:
    deployment = await deploy(Role.BOTH)
    async with service_of(deployment, priority=100) as service:
        await service.run(unit(0, prompts(1, 1)), Taken().take)
    assert [request.priority for _, request in deployment.seen.started] == [100]
