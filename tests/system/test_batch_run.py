"""`hpcserve batch run` on a real deployment: killed again and again, the driver and a worker, and nothing is lost."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpcserve.batch.paths import Paths
from tests.system.conftest import HPCSERVE, Deployment

pytestmark = [pytest.mark.real, pytest.mark.timeout(240)]

MOCK = ("--cluster", "local", "--engine", "mock")
NUM = 1500
KILLS = 6


def write_input(path: Path, num: int = NUM) -> None:
    with path.open("w") as file:
        for number in range(num):
            messages = [{"role": "user", "content": f"Question {number} of many"}]
            body = {"model": "mock", "messages": messages, "max_tokens": 16, "temperature": 0, "ignore_eos": True}
            line = {"custom_id": f"q{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")


def command(directory: Path, output: str, *options: str) -> list[str]:
    return [HPCSERVE, "batch", "run", str(directory / "in.jsonl"), "-o", str(directory / output), *options]


def texts(path: Path) -> dict[str, str]:
    """Return the answers by custom_id; each is there once."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    found = {each["custom_id"]: each["response"]["body"]["choices"][0]["message"]["content"] for each in lines}
    assert len(found) == len(lines)
    return found


def run(*words: str, env: dict[str, str], code: int = 0) -> dict[str, Any]:
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stderr
    return dict(json.loads(done.stdout))


def num_recorded(paths: Paths) -> int:
    return paths.ledger.read_bytes().count(b'"type":"done"') if paths.ledger.exists() else 0


def wait_for_records(paths: Paths, process: subprocess.Popen[bytes], before: int = 0) -> None:
    """Return when the ledger has more records, or the process has ended."""
    deadline = time.monotonic() + 60
    while process.poll() is None and num_recorded(paths) <= before:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_killed_at_random_nothing_is_lost_or_twice(deploy: Callable[..., Deployment], tmp_path: Path) -> None:
    deployment = deploy(*MOCK, "--nodes", "2", "--set", "engine.mock.speedup=0.25", "--set", "security.auth=on")
    write_input(tmp_path / "in.jsonl")
    undisturbed = run(*command(tmp_path, "quiet.jsonl", "--json"), env=deployment.env)
    assert (undisturbed["finished"], undisturbed["failed"], undisturbed["complete"]) == (NUM, 0, True)

    chance = random.Random(int(os.environ.get("BATCH_KILL_SEED", time.time_ns())))
    paths = Paths(tmp_path / "out.jsonl")
    num_killed = 0
    for attempt in range(KILLS):
        before = num_recorded(paths)
        driver = subprocess.Popen(
            command(tmp_path, "out.jsonl", "--concurrency", "64"), env=deployment.env, stderr=subprocess.DEVNULL
        )
        if attempt == 1:
            kill_a_worker(deployment)
        wait_for_records(paths, driver, before)
        time.sleep(chance.uniform(0, 1.2))  # anywhere in what it does next
        driver.kill()
        num_killed += driver.wait(10) == -signal.SIGKILL
    assert num_killed >= 2, "it was killed while it ran"
    last = run(*command(tmp_path, "out.jsonl", "--json"), env=deployment.env)
    assert (last["finished"], last["failed"], last["complete"]) == (NUM, 0, True)
    assert last["finished_before"] > 0
    assert texts(paths.output) == texts(tmp_path / "quiet.jsonl")


def kill_a_worker(deployment: Deployment) -> None:
    worker = next(each for each in deployment.status()["workers"] if each["state"] == "ready")
    os.kill(worker["pid"], signal.SIGKILL)


def test_ctrl_c_ends_in_good_order_and_says_how_to_go_on(deploy: Callable[..., Deployment], tmp_path: Path) -> None:
    deployment = deploy(*MOCK, "--nodes", "1", "--set", "engine.mock.speedup=1")
    write_input(tmp_path / "in.jsonl")
    paths = Paths(tmp_path / "out.jsonl")
    driver = subprocess.Popen(
        command(tmp_path, "out.jsonl", "--concurrency", "16"), env=deployment.env, stderr=subprocess.PIPE
    )
    wait_for_records(paths, driver)
    driver.send_signal(signal.SIGINT)
    _, said = driver.communicate(timeout=60)
    assert driver.returncode == 130, said
    assert b"stopped; the same command goes on: what is finished is in " in said
    num_answers = len(texts(paths.output))
    assert 0 < num_answers < NUM
    assert num_recorded(paths) == num_answers, "what was answered is kept, to the last"


def test_a_deployment_that_ends_fails_nothing(deploy: Callable[..., Deployment], tmp_path: Path) -> None:
    deployment = deploy(*MOCK, "--nodes", "1", "--set", "engine.mock.speedup=0.5")
    write_input(tmp_path / "in.jsonl", 600)
    paths = Paths(tmp_path / "out.jsonl")
    options = ("--concurrency", "16", "--patience", "1")
    driver = subprocess.Popen(command(tmp_path, "out.jsonl", *options), env=deployment.env, stderr=subprocess.PIPE)
    wait_for_records(paths, driver)
    deployment.hpcserve("down", "--force")
    _, said = driver.communicate(timeout=90)
    assert driver.returncode == 5, said
    assert not paths.errors.exists()
    again = deploy(*MOCK, "--nodes", "1", "--set", "engine.mock.speedup=.inf")
    assert run(*command(tmp_path, "out.jsonl", "--json"), env=again.env)["finished"] == 600
    assert len(texts(paths.output)) == 600


def test_the_benchmark_runs() -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "batch_run.py"
    done = subprocess.run(
        [sys.executable, script, "--lines", "200"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "lines/s" in done.stdout
