"""Every file in examples/ does what it says, against a real deployment on this machine."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fixtures_deployment import HPCSERVE, Deployment, processes_of, run_hpcserve

EXAMPLES = Path(__file__).parents[2] / "examples"
RUN_HERE = {"openai_client.py", "curl.sh", "scripted.sh", "demo.py", "batch.jsonl"}
MOCK = ("--cluster", "local", "--engine", "mock")

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]


def run(*command: str | Path, env: dict[str, str]) -> str:
    path = f"{Path(HPCSERVE).parent}:{env['PATH']}"
    done = subprocess.run(command, env=env | {"PATH": path}, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def guarded(deploy: Callable[..., Deployment]) -> Deployment:
    """A deployment that asks for its key."""
    return deploy(*MOCK, "--set", "security.auth=on")


def test_every_example_is_run_by_a_test() -> None:
    assert {path.name for path in EXAMPLES.iterdir() if path.is_file()} == RUN_HERE


def test_the_openai_client_chats_streams_and_completes(guarded: Deployment) -> None:
    client = (sys.executable, EXAMPLES / "openai_client.py")
    lines = run(
        *client, "--endpoint", guarded.endpoint, "--key-file", guarded.up["key_file"], env=guarded.env
    ).splitlines()
    assert lines[0] == "model: mock"
    whole = next(line.removeprefix("chat: ") for line in lines if line.startswith("chat: "))
    streamed = next(line.removeprefix("stream: ") for line in lines if line.startswith("stream: "))
    assert whole == repr(streamed)
    assert len(streamed) == 32, "one letter a token"
    assert [line.partition(":")[0] for line in lines[-4:]] == [f"completion {index}" for index in range(4)]
    given = {"OPENAI_BASE_URL": guarded.endpoint, "OPENAI_API_KEY": guarded.key}
    assert run(*client, env=guarded.env | given).splitlines() == lines, "the environment does as well"


def test_curl_gets_a_chat_and_a_stream(guarded: Deployment) -> None:
    header = guarded.hpcserve("key", "--header").stdout.strip()
    model, whole, *events = run(EXAMPLES / "curl.sh", guarded.endpoint, header, env=guarded.env).splitlines()
    assert model == "model: mock"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events if event.startswith("data: {")]
    text = "".join(choice["delta"]["content"] for chunk in chunks for choice in chunk["choices"])
    assert json.loads(whole)["choices"][0]["message"]["content"] == text
    assert events[-2:] == ["data: [DONE]", ""]


def test_curl_without_the_key_fails(guarded: Deployment) -> None:
    command = [EXAMPLES / "curl.sh", guarded.endpoint]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode != 0
    assert "401" in done.stderr


def test_the_script_leaves_nothing_behind(env: dict[str, str], state_root: Path) -> None:
    output = run(EXAMPLES / "scripted.sh", *MOCK, env=env)
    assert "data: [DONE]" in output
    assert re.search(r"^scripted-\d+ is down$", output, re.MULTILINE)
    assert not processes_of(state_root)


def test_the_batch_is_answered(guarded: Deployment, tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    guarded.hpcserve("batch", "run", str(EXAMPLES / "batch.jsonl"), "-o", str(output))
    answers = [json.loads(line) for line in output.read_text().splitlines()]
    assert {each["custom_id"] for each in answers} == {"greeting", "question", "story", "answer"}


@pytest.mark.vllm
def test_the_demo_shows_kv_moved_and_prefix_hits(env: dict[str, str], state_root: Path) -> None:
    output = run(sys.executable, EXAMPLES / "demo.py", env=env)
    hits = [int(number) for number in re.findall(r"(\d+) of them prefix hits", output)]
    assert hits[0] == 0
    assert hits[1] > 1000
    assert re.search(r'kv_pulled_tokens_total\{worker="decode-[^"]+"\} [1-9]', output), "KV came over NIXL"
    assert not processes_of(state_root)
    assert json.loads(run_hpcserve("status", "--name", "demo", "--json", env=env).stdout)["phase"] == "stopped"
