"""`mpirun … hpcserve batch run --standalone --cluster mpi` on this machine: one command line, many ranks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cluster.conftest import MPIRUN
from tests.fixtures_deployment import HPCSERVE, processes_of

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]

NUM = 400
OVER_MPI = ("--set", "kv.transport=mpi")
SLOW = ("--set", "engine.mock.speedup=0.3", "--concurrency", "16")


@pytest.fixture
def given(tmp_path: Path) -> Path:
    path = tmp_path / "in.txt"
    path.write_text("".join(f"prompt {number}\n" for number in range(NUM)))
    return path


@contextmanager
def started(given: Path, env: dict[str, str], *options: str) -> Iterator[subprocess.Popen[str]]:
    command = ("batch", "run", str(given), "-o", str(given.with_name("out.jsonl")), "--prompts", "--max-tokens", "8")
    own = ("--standalone", "--cluster", "mpi", "--engine", "mock", "--set", "cluster.interface=lo")
    process = subprocess.Popen(
        [*MPIRUN, "-n", "3", HPCSERVE, *command, *own, *options],
        env=env, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, said = process.communicate(timeout=120)
    return process.returncode, said


def check_complete(given: Path) -> None:
    lines = given.with_name("out.jsonl").read_text().splitlines()
    assert {json.loads(line)["custom_id"] for line in lines} == {f"line-{number}" for number in range(1, NUM + 1)}
    assert len(lines) == NUM


def holders(root: Path, words: bytes) -> dict[int, list[bytes]]:
    """Return the processes with these words in their command line and this state directory in their environment."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            line, environ = (path / "cmdline").read_bytes(), (path / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if words in line and f"HPCSERVE_STATE_DIR={root}".encode() in environ and b"mpirun" not in line.split(b"\0")[0]:
            found[int(path.name)] = environ
    return found


def until_answers(given: Path, process: subprocess.Popen[str]) -> None:
    output, deadline = given.with_name("out.jsonl"), time.monotonic() + 60
    while not (output.exists() and output.stat().st_size):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def _nothing_left(state_root: Path) -> Iterator[None]:
    yield
    deadline = time.monotonic() + 30  # a head notices a second later that its rank 0 is gone, and takes all down
    while processes_of(state_root) and time.monotonic() < deadline:
        time.sleep(0.1)


@pytest.mark.parametrize("options", [(), ("--mode", "disaggregated", *OVER_MPI)], ids=["children", "inside"])
def test_all_is_answered_and_the_second_time_there_is_nothing_to_do(
    given: Path, env: dict[str, str], state_root: Path, options: tuple[str, ...]
) -> None:
    with started(given, env, *options) as process:
        code, said = finish(process)
    assert code == 0, said
    assert "2 of 2 workers READY" in said
    check_complete(given)
    assert not processes_of(state_root)
    with started(given, env, *options) as process:
        code, said = finish(process)
    assert code == 0, said
    assert "READY" not in said


def test_wrong_input_ends_all_ranks_before_anything_starts(given: Path, env: dict[str, str], state_root: Path) -> None:
    given.write_bytes(b"fine\n\xff\n")
    with started(given, env) as process:
        code, said = finish(process)
    assert code == 2
    assert "line 2: is not UTF-8" in said
    assert not list(state_root.glob("*/config.json"))


def test_agents_of_ranks_are_children_without_the_launchers_variables(
    given: Path, env: dict[str, str], state_root: Path
) -> None:
    with started(given, env, *SLOW) as process:
        until_answers(given, process)
        agents = holders(state_root, b"hpcserve.agent")
        assert len(agents) == 2
        assert not [each for environ in agents.values() for each in environ if each.startswith((b"OMPI_", b"PMIX_"))]
        os.kill(next(iter(agents)), signal.SIGKILL)
        code, said = finish(process)
    assert code == 0, said
    assert "FAILED: killed by SIGKILL" in said
    check_complete(given)


def test_where_kv_travels_by_mpi_an_agent_that_dies_ends_the_world_and_the_command_goes_on(
    given: Path, env: dict[str, str], state_root: Path
) -> None:
    options = ("--mode", "disaggregated", *OVER_MPI)
    with started(given, env, *options, *SLOW) as process:
        until_answers(given, process)
        assert not holders(state_root, b"hpcserve.agent"), "agents are in the ranks"
        ranks = holders(state_root, b"batch\0run")
        worker = next(pid for pid, environ in ranks.items() if b"OMPI_COMM_WORLD_RANK=1" in environ)
        os.kill(worker, signal.SIGKILL)
        code, said = finish(process)
    assert code != 0, said
    with started(given, env, *options) as process:
        code, said = finish(process)
    assert code == 0, said
    assert "going on: " in said
    check_complete(given)
