"""Batches in one allocation of a real Slurm: over nodes, requeued, in parts, killed; every request exactly once."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fixtures_deployment import processes_of, run_hpcserve
from tests.fixtures_devcluster import DevCluster

pytestmark = [pytest.mark.real, pytest.mark.slurm, pytest.mark.timeout(180)]

AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if os.geteuid() == 0 else {}
MOCK = ("--engine", "mock", "--set", "cluster.interface=lo")  # all nodes are this machine
SLOW = ("--set", "engine.mock.speedup=0.3", "--concurrency", "32", "--grace", "5")
NUM = 600
WAIT_S = 120.0


@dataclass
class Batch:
    """A directory with an input, and what is submitted for it."""

    directory: Path
    slurm: DevCluster
    env: dict[str, str]

    @property
    def output(self) -> Path:
        return self.directory / "out.jsonl"

    def write_input(self, num: int = NUM) -> None:
        with (self.directory / "in.jsonl").open("w") as file:
            for number in range(num):
                messages = [{"role": "user", "content": f"Question {number} of many"}]
                body = {"model": "mock", "messages": messages, "max_tokens": 16, "temperature": 0, "ignore_eos": True}
                line = {"custom_id": f"q{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
                file.write(json.dumps(line) + "\n")

    def submit(self, *options: str, nodes: int = 2) -> str:
        where = (str(self.directory / "in.jsonl"), "-o", str(self.output))
        done = run_hpcserve(
            "batch", "submit", *where, "--nodes", str(nodes), "--time", "10", *MOCK, *options, env=self.env, check=True
        )
        return done.stdout.strip()

    def state(self, job: str) -> str:
        return self.slurm.slurm("squeue", "--noheader", f"--jobs={job}", "--states=all", "--format=%T").strip()

    def log(self, job: str) -> str:
        path = self.directory / f"out.slurm-{job}.log"
        return path.read_text() if path.exists() else ""

    def wait(self, job: str, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline, f"{self.state(job)}\n{self.log(job)[-4000:]}"
            time.sleep(0.1)

    def wait_for_answers(self, job: str) -> None:
        self.wait(job, lambda: self.output.exists() and self.output.stat().st_size > 0)

    def wait_for_end(self, job: str) -> str:
        """Return the states that its tasks ended in, when none is left."""
        self.wait(job, lambda: not self.slurm.slurm("squeue", "--noheader", f"--jobs={job}").strip())
        return self.state(job)

    def agents(self) -> list[int]:
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().split(b"\0")
            except OSError:
                continue
            if b"hpcserve.agent" in words and any(self.env["HPCSERVE_STATE_DIR"].encode() in word for word in words):
                found.append(int(path.parent.name))
        return found


@pytest.fixture
def batch(slurm: DevCluster, env: dict[str, str], tmp_path: Path) -> Batch:
    found = Batch(tmp_path, slurm, env | AS_ROOT | {"SLURM_CONF": str(slurm.conf)})
    found.write_input()
    return found


def check_complete(path: Path, num: int = NUM) -> None:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == num
    assert {line["custom_id"] for line in lines} == {f"q{number}" for number in range(num)}
    assert all(line["response"]["status_code"] == 200 for line in lines)
    assert not path.with_name("out.errors.jsonl").exists()


@pytest.mark.parametrize("launcher", ["srun", "mpirun"])
def test_four_nodes_work_through_a_file_and_leave_nothing(batch: Batch, state_root: Path, launcher: str) -> None:
    job = batch.submit("--launcher", launcher, nodes=4)
    batch.wait_for_end(job)
    log = batch.log(job)
    assert "all requests have answers" in log, log
    check_complete(batch.output)
    nodes = set(re.findall(r"on (gpu\d) ", log))
    assert len(nodes) == 4, log
    assert re.search(r"[\d.]+ GPU-hours", log)
    assert not processes_of(state_root)
    assert list(state_root.iterdir()) == []


def test_two_workers_a_node_share_its_gpus(batch: Batch, state_root: Path) -> None:
    job = batch.submit("--gpus-per-node", "4", "--workers-per-node", "2", *SLOW)
    batch.wait_for_answers(job)
    agents = batch.agents()
    shares = [
        Path(f"/proc/{pid}/environ").read_bytes().split(b"CUDA_VISIBLE_DEVICES=")[1].split(b"\0")[0] for pid in agents
    ]
    assert sorted(shares) == [b"0,1", b"0,1", b"2,3", b"2,3"]
    batch.slurm.slurm("scancel", "--signal=TERM", "--batch", job)
    batch.wait_for_end(job)
    assert "told to end" in batch.log(job)


@pytest.mark.parametrize("launcher", ["srun", "mpirun"])
def test_before_its_walltime_ends_the_job_requeues_itself_and_finishes(batch: Batch, launcher: str) -> None:
    job = batch.submit("--launcher", launcher, *SLOW)
    batch.wait_for_answers(job)
    batch.slurm.slurm("scancel", "--signal=USR1", "--batch", job)  # as Slurm does, with --signal
    batch.wait(job, lambda: "requeued" in batch.log(job))
    first = batch.log(job)
    assert "stopping, to be started again" in first
    assert "killed by SIGUSR1" not in first
    batch.wait_for_end(job)
    log = batch.log(job)
    assert f"of {NUM:,} requests are finished" in log, "it went on where it was"
    assert "all requests have answers" in log
    assert "Restarts=1" in batch.slurm.slurm("scontrol", "show", "job", job)
    check_complete(batch.output)


def test_tasks_of_an_array_do_their_parts_and_are_put_together(batch: Batch) -> None:
    job = batch.submit("--array", "3", nodes=1)
    batch.wait_for_end(job)
    parts = [batch.directory / f"out.{index}.jsonl" for index in range(3)]
    assert [len(part.read_text().splitlines()) for part in parts] == [NUM / 3] * 3
    run_hpcserve("batch", "merge", "-o", str(batch.output), env=batch.env, check=True)
    check_complete(batch.output)


def test_an_agent_that_is_killed_is_replaced_in_the_allocation(batch: Batch) -> None:
    job = batch.submit(*SLOW)
    batch.wait_for_answers(job)
    os.kill(batch.agents()[0], signal.SIGKILL)
    batch.wait(job, lambda: "FAILED: killed by SIGKILL" in batch.log(job))
    batch.wait_for_end(job)
    log = batch.log(job)
    assert "all requests have answers" in log
    assert "goes on in this allocation" not in log, "rank 0 never noticed"
    check_complete(batch.output)


def test_a_driver_that_is_killed_goes_on_in_the_same_allocation(batch: Batch, state_root: Path) -> None:
    job = batch.submit(*SLOW)
    batch.wait_for_answers(job)
    drivers = subprocess.run(["pgrep", "-f", f"batch run {batch.directory}/in.jsonl"], capture_output=True, text=True)
    of_rank = {_rank(int(pid)): int(pid) for pid in drivers.stdout.split()}
    os.kill(of_rank["0"], signal.SIGKILL)
    batch.wait_for_end(job)
    log = batch.log(job)
    assert "goes on in this allocation" in log
    assert "all requests have answers" in log
    check_complete(batch.output)


def test_an_allocation_that_is_killed_is_submitted_again_and_goes_on(batch: Batch) -> None:
    job = batch.submit(*SLOW)
    batch.wait_for_answers(job)
    batch.slurm.slurm("scancel", "--signal=KILL", "--full", job)
    batch.wait_for_end(job)
    so_far = len(batch.output.read_text().splitlines())
    assert 0 < so_far < NUM
    again = batch.submit()
    batch.wait_for_end(again)
    assert f"of {NUM:,} requests are finished" in batch.log(again)
    check_complete(batch.output)


def _rank(pid: int) -> str:
    """Return the rank that a process of `srun` is; launchers themselves are none."""
    environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    if not any(each.startswith(b"SLURM_STEP_NUM_TASKS=") for each in environ):
        return "launcher"
    if b"srun" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]:
        return "launcher"
    return next(each.decode().partition("=")[2] for each in environ if each.startswith(b"SLURM_PROCID="))
