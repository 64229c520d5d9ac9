"""Batches over the API of real deployments with mock engines, by the unmodified client: nothing lost, nothing twice."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.system.conftest import Deployment

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]

FLAGS = ("--cluster", "local", "--engine", "mock", "--nodes", "1", "--set", "security.auth=on")
ENDS = ("completed", "failed", "expired", "cancelled")


@contextmanager
def client_of(deployment: Deployment, key: str | None = None) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=deployment.endpoint, api_key=key or deployment.key, max_retries=0) as client:
        yield client


def lines(num: int, num_tokens: int = 40) -> list[dict[str, Any]]:
    return [
        {
            "custom_id": f"r{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": "mock",
                "messages": [{"role": "user", "content": f"question {number}"}],
                "max_tokens": num_tokens,
                "temperature": 0,
            },
        }
        for number in range(num)
    ]


def submit(client: openai.OpenAI, requests: list[dict[str, Any]]) -> openai.types.Batch:
    content = "".join(json.dumps(each) + "\n" for each in requests).encode()
    source = client.files.create(file=("in.jsonl", content), purpose="batch")
    return client.batches.create(
        input_file_id=source.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"of": "a test"}
    )


def wait(client: openai.OpenAI, batch_id: str, condition: Callable[[openai.types.Batch], bool]) -> openai.types.Batch:
    deadline = time.monotonic() + 60
    while not condition(batch := client.batches.retrieve(batch_id)):
        assert time.monotonic() < deadline, batch
        assert batch.status not in ENDS, batch
        time.sleep(0.05)
    return batch


def end(client: openai.OpenAI, batch_id: str) -> openai.types.Batch:
    return wait(client, batch_id, lambda batch: batch.status in ENDS)


def answers(client: openai.OpenAI, file_id: str | None) -> dict[str, Any]:
    assert file_id is not None
    read = [json.loads(each) for each in client.files.content(file_id).text.splitlines()]
    found = {each["custom_id"]: each for each in read}
    assert len(found) == len(read), "twice"
    return found


def runner_of(deployment: Deployment) -> int | None:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"hpcserve.serve.batch_runner" in words and os.fsencode(deployment.state_dir) in words:
            return int(path.parent.name)
    return None


@pytest.fixture(scope="module")
def deployment(deploy_shared: Callable[..., Deployment]) -> Deployment:
    return deploy_shared(*FLAGS)


def test_the_client_has_a_batch_answered(deployment: Deployment) -> None:
    too_long = {**lines(1)[0], "custom_id": "long"}
    too_long["body"] = {**too_long["body"], "messages": [{"role": "user", "content": "x" * 200_000}]}
    with client_of(deployment) as client:
        made = submit(client, [*lines(50), too_long])
        assert made.status == "validating"
        done = end(client, made.id)
        assert done.status == "completed"
        assert done.metadata == {"of": "a test"}
        counts = done.request_counts
        assert counts is not None
        assert (counts.total, counts.completed, counts.failed) == (51, 50, 1)
        found = answers(client, done.output_file_id)
        assert set(found) == {f"r{number}" for number in range(50)}
        body = found["r7"]["response"]["body"]
        assert body["usage"]["completion_tokens"] == 40
        assert answers(client, done.error_file_id)["long"]["response"]["status_code"] == 400


def test_wrong_lines_are_told_by_their_numbers(deployment: Deployment) -> None:
    wrong = lines(3)
    wrong[1]["body"]["model"] = "none"
    wrong[2]["custom_id"] = "r0"
    with client_of(deployment) as client:
        done = end(client, submit(client, wrong).id)
    assert done.status == "failed"
    assert done.errors is not None
    found = [(each.line, each.code) for each in done.errors.data or ()]
    assert found == [(2, "model_not_found"), (3, "duplicate_custom_id")]


def test_a_batch_goes_on_after_its_runner_was_killed(deployment: Deployment) -> None:
    with client_of(deployment) as client:
        made = submit(client, lines(1000, num_tokens=100))
        killed = None
        for _ in range(2):
            before = client.batches.retrieve(made.id).request_counts
            assert before is not None
            wait(client, made.id, lambda batch, least=before.completed: batch.request_counts.completed > least)  # type: ignore
            runner = runner_of(deployment)
            assert runner not in (None, killed)
            os.kill(runner, signal.SIGKILL)  # type: ignore[arg-type]
            killed = runner
        done = end(client, made.id)
        assert done.status == "completed"
        assert set(answers(client, done.output_file_id)) == {f"r{number}" for number in range(1000)}


def test_files_and_batches_outlive_a_head_that_was_killed(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy(*FLAGS)
    with client_of(deployment) as client:
        made = submit(client, lines(600))
        queued = submit(client, lines(5))
        wait(client, made.id, lambda batch: batch.request_counts.completed >= 50)  # type: ignore[union-attr]
        os.kill(deployment.up["head_pid"], signal.SIGKILL)
    deployment.hpcserve("down", "--force")
    deadline = time.monotonic() + 10
    while runner_of(deployment) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    again = deploy(*FLAGS)
    with client_of(again) as client:
        assert client.files.retrieve(made.input_file_id).filename == "in.jsonl"
        for batch, num in ((made, 600), (queued, 5)):
            done = end(client, batch.id)
            assert done.status == "completed"
            assert set(answers(client, done.output_file_id)) == {f"r{number}" for number in range(num)}


def test_a_cancelled_batch_ends_within_seconds_and_keeps_its_answers(deployment: Deployment) -> None:
    with client_of(deployment) as client:
        made = submit(client, lines(400, num_tokens=300))
        wait(client, made.id, lambda batch: batch.request_counts.completed >= 20)  # type: ignore[union-attr]
        asked_at = time.monotonic()
        assert client.batches.cancel(made.id).status == "cancelling"
        done = end(client, made.id)
        assert time.monotonic() - asked_at < 5
        assert done.status == "cancelled"
        assert done.request_counts is not None
        assert len(answers(client, done.output_file_id)) == done.request_counts.completed < 400
        deadline = time.monotonic() + 5
        while any(worker["load"]["num_running"] for worker in deployment.status()["workers"]):
            assert time.monotonic() < deadline


def test_a_batch_counts_as_its_tenants_and_its_limits_hold_nothing_up(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy(*FLAGS)
    key = deployment.hpcserve("keys", "add", "ann", "--requests-per-minute", "30").stdout.strip()
    deadline = time.monotonic() + 10
    while True:
        try:
            with client_of(deployment, key) as client:
                made = submit(client, lines(100))
            break
        except openai.AuthenticationError:
            assert time.monotonic() < deadline
    with client_of(deployment, key) as client:
        done = end(client, made.id)
        assert len(answers(client, done.output_file_id)) == 100
    with client_of(deployment) as client, pytest.raises(openai.NotFoundError):
        client.batches.retrieve(made.id)
    deployment.hpcserve("down")
    used = json.loads(deployment.hpcserve("usage", "--json").stdout)
    (ann,) = [each for each in used if each["name"] == "ann"]
    assert ann["generated_tokens"] == 4000
    assert ann["requests"] > 100
