"""A real deployment with mock engines over TLS and a Unix socket: banner, status, requests, restart, usage, end."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import openai
import pytest

from tests.certificates import make_certificate
from tests.system.conftest import Deployment, run_hpcserve

pytestmark = [pytest.mark.real, pytest.mark.timeout(150)]

FLAGS = ("--cluster", "local", "--engine", "mock", "--nodes", "1", "--set", "security.auth=on")


def over_tls(deployment: Deployment, cert: Path) -> openai.OpenAI:
    http = httpx.Client(verify=ssl.create_default_context(cafile=cert))
    return openai.OpenAI(base_url=deployment.endpoint, api_key=deployment.key, max_retries=0, http_client=http)


def over_socket(deployment: Deployment) -> openai.OpenAI:
    http = httpx.Client(transport=httpx.HTTPTransport(uds=deployment.up["unix_socket"]))
    return openai.OpenAI(base_url="http://localhost/v1", api_key=deployment.key, max_retries=0, http_client=http)


def ask(client: openai.OpenAI) -> int:
    """Stream a completion; return how many tokens came."""
    options = {"include_usage": True}
    chunks = list(
        client.completions.create(model="mock", prompt="hi", max_tokens=3, stream=True, stream_options=options)
    )
    return int(chunks[-1].usage.completion_tokens)


def usage(deployment: Deployment) -> dict[str, dict[str, object]]:
    return {each["name"]: each for each in json.loads(deployment.hpcserve("usage", "--json").stdout)}


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_tls_and_a_unix_socket_serve_side_by_side_over_a_restart_of_the_frontend(
    deploy: Callable[..., Deployment], state_root: Path
) -> None:
    cert, key = make_certificate(state_root / "tls")
    path = state_root / "run" / "api.sock"
    tls = ("--set", f"frontend.tls_cert={cert}", "--set", f"frontend.tls_key={key}")
    deployment = deploy(*FLAGS, *tls, "--unix-socket", str(path))
    assert deployment.endpoint.startswith("https://127.0.0.1:")
    assert deployment.up["unix_socket"] == str(path)
    with over_tls(deployment, cert) as tcp, over_socket(deployment) as unix:
        assert ask(tcp) == ask(unix) == 3
    os.kill(int(deployment.status()["frontend_pid"]), signal.SIGKILL)  # its socket stays, and is replaced
    wait_until(lambda: deployment.status()["frontend_pid"] not in (None, deployment.up["frontend_pid"]))
    deployment.up["endpoint"] = deployment.status()["endpoint"]
    with over_tls(deployment, cert) as tcp, over_socket(deployment) as unix:
        assert ask(tcp) == ask(unix) == 3
    deployment.hpcserve("down")
    assert not path.exists()
    used = usage(deployment)["default"]
    assert used["requests"] in (2, 4)  # what a killed frontend counted last may be lost
    assert used["generated_tokens"] == 3 * int(str(used["requests"]))
    assert (deployment.state_dir / "usage.json").stat().st_mode & 0o777 == 0o600


def test_usage_counts_on_over_a_restart_in_good_order(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy(*FLAGS)
    for num_requests in (1, 2):
        with openai.OpenAI(base_url=deployment.endpoint, api_key=deployment.key, max_retries=0) as client:
            assert ask(client) == 3
        before = deployment.status()["frontend_pid"]
        os.kill(int(before), signal.SIGTERM)
        wait_until(lambda pid=before: deployment.status()["frontend_pid"] not in (None, pid))
        deployment.up["endpoint"] = deployment.status()["endpoint"]
        assert usage(deployment)["default"]["requests"] == num_requests


def test_a_deployment_may_have_a_socket_and_no_port(env: dict[str, str], state_root: Path) -> None:
    path = state_root / "run" / "api.sock"
    only = ("--set", "frontend.tcp=false", "--unix-socket", str(path))
    try:
        done = run_hpcserve("up", "--detach", *FLAGS, *only, "--name", "t", env=env, check=True)
        rows = {
            label: done.stdout.split(f"\n{label}", 1)[1].split("\n", 1)[0].strip() for label in ("socket", "try it")
        }
        assert rows["socket"] == str(path)
        answer = subprocess.run(rows["try it"], shell=True, capture_output=True, text=True, timeout=30, check=True)
        assert json.loads(answer.stdout)["choices"]
    finally:
        run_hpcserve("down", "--force", "--name", "t", env=env)


def test_a_certificate_that_cannot_be_used_is_refused_before_anything_is_started(
    env: dict[str, str], state_root: Path
) -> None:
    cert, key = make_certificate(state_root / "tls")
    key.chmod(0o644)
    tls = ("--set", f"frontend.tls_cert={cert}", "--set", f"frontend.tls_key={key}")
    done = run_hpcserve("up", "--detach", *FLAGS, *tls, "--name", "t", env=env)
    assert done.returncode == 2
    assert "others may read frontend.tls_key" in done.stderr
    assert not (state_root / "t").exists()
    done = run_hpcserve("up", "--detach", *FLAGS, *tls[:2], "--name", "t", env=env)
    assert done.returncode == 2
    assert "needs frontend.tls_key: give both or neither" in done.stderr
