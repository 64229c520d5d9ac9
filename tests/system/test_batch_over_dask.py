"""Batches as Dask tasks on a real deployment: answers as over HTTP, seen on Dask's pages, and dead heads noticed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.system.conftest import HPCSERVE, Deployment

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

MOCK = ("--cluster", "local", "--engine", "mock")
MESSAGES = [{"role": "user", "content": "What is a batch?"}]
BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": MESSAGES}),
    ("/v1/chat/completions", {"messages": MESSAGES, "n": 3, "logprobs": True, "top_logprobs": 2}),
    ("/v1/chat/completions", {"messages": MESSAGES, "return_token_ids": True, "stop": ["e"]}),
    ("/v1/chat/completions", {"messages": MESSAGES, "response_format": {"type": "json_object"}}),  # not of the mock
    ("/v1/completions", {"prompt": ["one", "two two"], "echo": True}),
    ("/v1/completions", {"prompt": [5, 6, 7], "n": 2, "logprobs": 1}),
    ("/v1/responses", {"input": "What is a batch?", "max_output_tokens": 16}),
    ("/v1/embeddings", {"input": ["one"]}),
]
ITS_OWN = re.compile(r'"(id|created|created_at|request_id|item_id)":("[^"]*"|\d+)')


def write_input(path: Path) -> None:
    with path.open("w") as file:
        for number, (url, fields) in enumerate(BODIES):
            generates = {"temperature": 0, "max_tokens": 8} if "completions" in url else {}
            body = {"model": "mock", **generates, **fields}
            file.write(json.dumps({"custom_id": f"r{number}", "method": "POST", "url": url, "body": body}) + "\n")


def results(path: Path) -> dict[str, str]:
    """Return the results by custom id, without what no two requests share."""
    found = {}
    for name in (path, path.with_suffix(".errors.jsonl")):
        for line in name.read_text().splitlines():
            told = json.loads(line)
            found[told["custom_id"]] = ITS_OWN.sub(r'"\1":0', json.dumps(told["response"], separators=(",", ":")))
    return found


def run(deployment: Deployment, *words: str, code: int) -> None:
    command = [HPCSERVE, "batch", "run", *words, "--json"]
    done = subprocess.run(command, env=deployment.env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr


def test_answers_are_those_of_the_endpoint(deploy: Callable[..., Deployment], tmp_path: Path) -> None:
    deployment = deploy(*MOCK, "--nodes", "1", "--set", "engine.mock.speedup=.inf", "--set", "security.auth=on")
    write_input(tmp_path / "in.jsonl")
    for over in ("dask", "http"):
        output = tmp_path / f"{over}.jsonl"
        run(deployment, str(tmp_path / "in.jsonl"), "-o", str(output), "--over", over, "--attempts", "1", code=3)
        if over == "dask":
            used = json.loads((deployment.state_dir / "usage.json").read_text())["default"]
            assert used["requests"] >= len(BODIES)
            assert used["generated_tokens"] > 50
    over_dask, over_http = results(tmp_path / "dask.jsonl"), results(tmp_path / "http.jsonl")
    assert len(over_http) == len(BODIES)
    for name, answer in over_http.items():
        assert over_dask[name] == answer


def start(deployment: Deployment, directory: Path, *options: str) -> subprocess.Popen[bytes]:
    """Start a batch that takes a while, and return once it has answers."""
    (directory / "in.txt").write_text("".join(f"Question {number}\n" for number in range(5000)))
    words = [str(directory / "in.txt"), "-o", str(directory / "out.jsonl"), "--prompts", "--max-tokens", "32", *options]
    driver = subprocess.Popen([HPCSERVE, "batch", "run", *words], env=deployment.env, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 30
    while not ((directory / "out.jsonl").exists() and (directory / "out.jsonl").stat().st_size):
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return driver


def test_dasks_pages_show_units_by_what_they_are(deploy: Callable[..., Deployment], tmp_path: Path) -> None:
    sizes = ("--prefill", "1", "--decode", "1", "--set", "router.min_remote_prefill_tokens=1")
    deployment = deploy(*MOCK, *sizes, "--set", "engine.mock.speedup=0.5")
    driver = start(deployment, tmp_path)
    root = deployment.status()["dashboard"].rsplit("/", 1)[0]
    with urllib.request.urlopen(f"{root}/metrics", timeout=10) as response:
        metrics = response.read().decode()
    assert 'task_prefix_name="chat-prefill"' in metrics
    assert 'task_prefix_name="chat-decode"' in metrics
    driver.send_signal(signal.SIGINT)
    driver.send_signal(signal.SIGINT)
    _, said = driver.communicate(timeout=30)
    assert driver.returncode == 130, said


def test_a_head_that_dies_ends_the_run_and_fails_nothing(deploy: Callable[..., Deployment], tmp_path: Path) -> None:
    deployment = deploy(*MOCK, "--nodes", "1", "--set", "engine.mock.speedup=0.5")
    driver = start(deployment, tmp_path, "--patience", "1")
    os.kill(deployment.up["head_pid"], signal.SIGKILL)
    _, said = driver.communicate(timeout=60)
    assert driver.returncode == 5, said
    assert not (tmp_path / "out.errors.jsonl").exists()
    deployment.hpcserve("down", "--force")
