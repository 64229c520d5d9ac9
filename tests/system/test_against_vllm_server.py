"""The same requests to hpcserve and to vLLM's own server, over the same model: the same answers, chunk by chunk."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.system.conftest import Deployment
from tests.system.vllm_cases import CASES, REASONING_CASES, Case
from tests.system.vllm_comparison import ACCEPTED, Answer, Comparison

pytestmark = [pytest.mark.real, pytest.mark.vllm, pytest.mark.timeout(300)]

TEMPLATE = """\
{{ bos_token }}{% if tools %}<|system|>
{{ tools | tojson }}{{ eos_token }}
{% endif %}{% for message in messages %}<|{{ message.role }}|>
{{ message.content }}{% for call in message.tool_calls or [] %}<tool_call>\
{{ {"name": call.function.name, "arguments": call.function.arguments} | tojson }}</tool_call>{% endfor %}{{ eos_token }}
{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% if thinking %}<think>{% endif %}{% endif %}"""
SETTINGS = ("--set", "model.name=tiny", "--set", "cluster.local.threads=1")
START_S = 120


@pytest.fixture
def template(tmp_path: Path) -> Path:
    path = tmp_path / "template.jinja"
    path.write_text(TEMPLATE)
    return path


@contextmanager
def vllm_server(model: Path, template: Path, log: Path, *arguments: str) -> Iterator[Callable[[], str]]:
    """Run `vllm.entrypoints.openai.api_server`; yield what waits for it and returns the address of its API."""
    port = free_port()
    settings = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1", "TORCH_COMPILE_DISABLE": "1"}
    flags = {
        "--model": str(model), "--served-model-name": "tiny", "--host": "127.0.0.1", "--port": str(port),
        "--dtype": "float32", "--max-model-len": "8192", "--block-size": "32", "--chat-template": str(template),
    }  # fmt: skip
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager"]
    command += ["--enable-prompt-tokens-details", *(word for pair in flags.items() for word in pair), *arguments]
    with log.open("wb") as output:
        env = os.environ | settings | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=env)

    def endpoint() -> str:
        wait_for(process, f"http://127.0.0.1:{port}/health", log)
        return f"http://127.0.0.1:{port}/v1"

    try:
        yield endpoint
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise AssertionError(f"vLLM's server did not start:\n{log.read_text(errors='replace')[-4000:]}")


async def answers(endpoint: str, cases: list[Case], key: str = "none") -> dict[str, Answer]:
    """Send requests one after the other, so that what is cached and what runs together is the same everywhere."""
    given = {}
    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(headers=headers) as session:
        for case in cases:
            async with session.post(f"{endpoint}/{case.path}", json=case.body) as response:
                given[case.name] = answer_of(response.status, await response.text(), response.content_type)
    assert len(given) == len(cases), "two cases have the same name"
    return given


def answer_of(status: int, text: str, content_type: str) -> Answer:
    if content_type != "text/event-stream":
        return Answer(status, [json.loads(text)])
    *events, last = [event.removeprefix("data: ") for event in text.strip().split("\n\n")]
    return Answer(status, [json.loads(event) for event in events], ends=last == "[DONE]")


async def compare(deployment: Deployment, endpoint: str, cases: list[Case]) -> Comparison:
    ours = await answers(deployment.endpoint, cases, deployment.key)
    theirs = await answers(endpoint, cases)
    comparison = Comparison()
    for case in cases:
        comparison.add(case.name, ours[case.name], theirs[case.name])
    return comparison


async def test_answers_have_the_fields_order_and_contents_of_vllms_own_server(
    deploy: Callable[..., Deployment], marked_model: Path, template: Path, tmp_path: Path
) -> None:
    flags = ("--cluster", "local", "--nodes", "1", "--model", str(marked_model), *SETTINGS)
    tools = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
    with vllm_server(marked_model, template, tmp_path / "vllm.log", *tools) as endpoint:  # both start side by side
        deployment = deploy(*flags, "--set", "model.tool_parser=hermes", "--set", f"model.chat_template={template}")
        comparison = await compare(deployment, endpoint(), CASES)
    assert not comparison.differences, "\n\n".join(comparison.differences)
    assert len(CASES) >= 40
    assert comparison.num_joined <= len(CASES) // 4


def test_every_accepted_difference_is_told_to_users() -> None:
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    assert not [each.what for each in ACCEPTED if each.what not in page]


async def test_reasoning_is_told_apart_as_by_vllms_own_server(
    deploy: Callable[..., Deployment], marked_model: Path, template: Path, tmp_path: Path
) -> None:
    flags = ("--cluster", "local", "--nodes", "1", "--model", str(marked_model), *SETTINGS)
    parser = ("--set", "model.tool_parser=none", "--set", "model.reasoning_parser=deepseek_v3")
    with vllm_server(marked_model, template, tmp_path / "vllm.log", "--reasoning-parser", "deepseek_v3") as endpoint:
        deployment = deploy(*flags, *parser, "--set", f"model.chat_template={template}")
        comparison = await compare(deployment, endpoint(), REASONING_CASES)
    assert not comparison.differences, "\n\n".join(comparison.differences)
