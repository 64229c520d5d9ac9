"""Whole serving systems with engines that have no model, started and ended: hpcserve, Dynamo, vllm-router. No script.

What Dynamo needs is in `dynamo_replay.py`. vllm-router is a Rust proxy: `pip install vllm-router` in an environment of
its own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.process_cpu import descendants

MODEL = "tiny"
NUM_WORKERS = 4
_START_TIMEOUT_S = 120.0
_HPCSERVE = Path(sys.executable).with_name("hpcserve")


@dataclass(frozen=True)
class System:
    """What clients talk to, and the processes that it is made of."""

    name: str
    port: int
    key: str | None
    frontend: list[int]  # pids of what speaks HTTP
    engines: list[int] = field(default_factory=list)  # pids
    others: list[int] = field(default_factory=list)  # pids

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def hpcserve(
    directory: Path,
    model: Path,
    flags: Sequence[str] = (),
    *,
    engine: str = "mock",
    num_workers: int = NUM_WORKERS,
    settings: Sequence[str] = ("engine.mock.speedup=.inf",),
) -> Iterator[System]:
    """A local deployment as `up` makes it, keys asked for; unless told otherwise with engines that take no time."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("HPCSERVE_")}
    env = others | {"HPCSERVE_STATE_DIR": str(directory / "state")}
    up = [_HPCSERVE, "up", "--cluster", "local", "--engine", engine, "--detach", "--json", "--port", "0"]
    up += ["--name", "bench", "--nodes", str(num_workers)]
    for setting in ("security.auth=on", f"model.path={model}", f"model.name={MODEL}", *settings):
        up += ["--set", setting]
    pids: list[int] = []
    try:
        started = subprocess.run([*up, *flags], env=env, stdout=subprocess.PIPE, text=True, check=True, timeout=180)
        facts = json.loads(started.stdout)
        status = subprocess.run(
            [_HPCSERVE, "status", "--json", "--name", "bench"], env=env, stdout=subprocess.PIPE, text=True, check=True
        )
        told = json.loads(status.stdout)
        head, frontends = told["head_pid"], told["frontend_pids"]
        pids = descendants(head)
        rest = [pid for pid in pids if pid not in (head, *frontends)]
        key = Path(facts["key_file"]).read_text().strip()
        port = int(facts["endpoint"].rsplit(":", 1)[1].split("/")[0])
        yield System("hpcserve", port, key, frontends, rest, [head])
    finally:
        down = subprocess.run([_HPCSERVE, "down", "--force", "--name", "bench"], env=env, stdout=subprocess.DEVNULL)
        for pid in pids if down.returncode else ():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def dynamo(directory: Path, model: Path, python: Path, port: int = 8200) -> Iterator[System]:
    """Dynamo's frontend with its KV router, and its mocker with as many workers."""
    files = directory / "dynamo"
    files.mkdir()
    env = os.environ | {
        "DYN_DISCOVERY_BACKEND": "file",
        "DYN_FILE_KV": str(files),
        "DYN_REQUEST_PLANE": "tcp",
        "DYN_EVENT_PLANE": "zmq",
        "DYN_LOG": "error",
    }
    frontend = [python, "-m", "dynamo.frontend", "--http-port", str(port), "--router-mode", "kv"]
    frontend += ["--kv-cache-block-size", "64"]
    mocker = [python, "-m", "dynamo.mocker", "--model-path", str(model), "--model-name", MODEL, "--speedup-ratio", "0"]
    mocker += ["--num-workers", str(NUM_WORKERS), "--block-size", "64"]
    with (
        process(mocker, env, directory / "mocker.log") as engines,
        process(frontend, env, directory / "frontend.log") as serving,
    ):
        system = System("dynamo", port, None, [serving.pid], [engines.pid])
        wait_for_answer(system, serving, engines)
        yield System("dynamo", port, None, descendants(serving.pid), descendants(engines.pid))


@contextmanager
def vllm_router(directory: Path, python: Path, behind: System, port: int = 8300) -> Iterator[System]:
    """vllm-router in front of another system, as the only thing between the two."""
    command = [python.with_name("vllm-router"), "--port", str(port), "--worker-urls", behind.url]
    command += ["--policy", "cache_aware", "--prometheus-port", str(port + 1), "--max-concurrent-requests", "100000"]
    with process(command, dict(os.environ), directory / "router.log") as proxy:
        system = System("vllm-router", port, behind.key, [proxy.pid], behind.engines, behind.frontend)
        wait_for_answer(system, proxy)
        yield System("vllm-router", port, behind.key, descendants(proxy.pid), behind.engines, behind.frontend)


@contextmanager
def process(command: Sequence[object], env: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as file:
        process = subprocess.Popen([str(each) for each in command], env=env, stdout=file, stderr=file)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for_answer(system: System, *processes: subprocess.Popen[bytes]) -> None:
    """Return once a request is answered: models are found some time after the port opens."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {system.key}"} if system.key else {})
    request = urllib.request.Request(f"{system.url}/v1/chat/completions", json.dumps(body).encode(), headers)
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        try:
            with urllib.request.urlopen(request, timeout=10) as reply:
                reply.read()
            return
        except (urllib.error.URLError, OSError) as err:
            ended = [process.args for process in processes if process.poll() is not None]
            if ended or time.monotonic() > deadline:
                raise RuntimeError(f"{system.name} does not answer: {err}; ended: {ended}") from err
        time.sleep(0.2)
