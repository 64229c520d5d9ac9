"""A whole disaggregated deployment in the ranks of one `mpirun`, whose KV goes by MPI, through the endpoint."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.contract.kv_sides import mpirun
from tests.system.conftest import HPCSERVE, Deployment, run_hpcserve
from tests.system.test_vllm_deployment import check_hanging_up, metric, replies, settled
from tests.system.vllm_alone import Alone, unlike_prompts

pytestmark = [
    pytest.mark.real,
    pytest.mark.vllm,
    pytest.mark.timeout(400),
    pytest.mark.skipif(
        shutil.which("mpirun") is None or importlib.util.find_spec("mpi4py") is None, reason="needs mpirun and mpi4py"
    ),
]

UP_TIMEOUT_S = 180.0
END_TIMEOUT_S = 40.0


@contextmanager
def in_ranks(env: dict[str, str], log: Path, *arguments: str) -> Iterator[Deployment]:
    """Run `hpcserve up` in three ranks: the head, and a worker in each of the others."""
    command = [*mpirun(3), HPCSERVE, "up", "--cluster", "mpi", "--name", "t", "--port", "0", *arguments]
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            env=env | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield _wait_for_serving(process, env, log)
        run_hpcserve("down", "--name", "t", env=env, check=True)
        process.wait(END_TIMEOUT_S)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_TIMEOUT_S)
        run_hpcserve("down", "--force", "--name", "t", env=env)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_for_serving(process: subprocess.Popen[bytes], env: dict[str, str], log: Path) -> Deployment:
    deadline = time.monotonic() + UP_TIMEOUT_S
    status: dict[str, object] = {}
    while time.monotonic() < deadline and process.poll() is None:
        told = run_hpcserve("status", "--name", "t", "--json", env=env).stdout
        status = json.loads(told) if told.startswith("{") else {}
        if status.get("phase") == "serving" and status.get("endpoint"):
            return Deployment(status, env)
        time.sleep(0.5)
    pytest.fail(f"not serving: {status}\n{log.read_text()[-4000:]}")


async def test_disaggregated_replies_over_mpi_equal_aggregated_ones_token_for_token(
    alone: Alone, env: dict[str, str], tiny_model: Path, tmp_path: Path
) -> None:
    arguments = ("--model", str(tiny_model), "--set", "model.name=tiny")
    pools = ("--prefill", "1", "--decode", "1", "--set", "kv.transport=mpi", "--set", "cluster.interface=lo")
    with in_ranks(env, tmp_path / "up.log", *arguments, *pools) as deployment:
        engines = [worker["engine"] for worker in deployment.status()["workers"]]
        assert [engine["kv_transport"] for engine in engines] == ["mpi", "mpi"]
        assert await replies(deployment, at_once=False) == alone.to_unlike
        num_tokens = sum(len(prompt) for prompt in unlike_prompts())
        pulled = await settled(deployment, "hpcserve_worker_kv_pulled_tokens_total", "decode", num_tokens * 0.9)
        assert pulled <= num_tokens
        assert await replies(deployment, at_once=True) == alone.to_unlike
        assert await metric(deployment, "hpcserve_worker_kv_pull_failures_total", "decode") == 0
        await check_hanging_up(deployment)
