"""`hpcserve batch run --standalone` for real: it brings its engines up, and whatever happens nothing of it is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from hpcserve.batch.paths import Paths
from tests.system.conftest import HPCSERVE, processes_of, run_hpcserve

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

OWN = ("--standalone", "--cluster", "local", "--engine", "mock", "--nodes", "2")
NUM = 400


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "in.txt").write_text("".join(f"Question {number} of many\n" for number in range(NUM)))
    return tmp_path


def command(directory: Path, *options: str) -> list[str]:
    words = ["batch", "run", str(directory / "in.txt"), "-o", str(directory / "out.jsonl"), "--prompts"]
    return [*words, "--max-tokens", "16", "--temperature", "0", *OWN, *options]


def deployments(env: dict[str, str]) -> list[str]:
    return os.listdir(env["HPCSERVE_STATE_DIR"])


def num_answers(directory: Path) -> int:
    output = directory / "out.jsonl"
    return output.read_bytes().count(b"\n") if output.exists() else 0


def ended(process: subprocess.Popen[bytes], directory: Path, number: signal.Signals) -> int:
    """Send a signal once there are answers, and return the exit code."""
    ledger = Paths(directory / "out.jsonl").ledger
    deadline = time.monotonic() + 60
    while not (ledger.exists() and b'"type":"done"' in ledger.read_bytes()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    return process.wait(60)


def test_engines_come_up_and_go_and_nothing_is_left(directory: Path, env: dict[str, str]) -> None:
    done = run_hpcserve(*command(directory, "--json", "--set", "engine.mock.speedup=.inf"), env=env, check=True)
    told = json.loads(done.stdout)
    assert (told["finished"], told["failed"], told["complete"]) == (NUM, 0, True)
    assert num_answers(directory) == NUM
    assert deployments(env) == []
    assert processes_of(Path(env["HPCSERVE_STATE_DIR"])) == []
    again = run_hpcserve(*command(directory, "--json"), env=env, check=True)
    assert json.loads(again.stdout)["finished_before"] == NUM
    assert "READY" not in again.stderr, "no engine is started for nothing"


def test_wrong_input_starts_no_engine(directory: Path, env: dict[str, str]) -> None:
    (directory / "in.txt").write_bytes(b"fine\n\xff\xfe\n")
    done = run_hpcserve(*command(directory), env=env)
    assert done.returncode == 2
    assert "line 2" in done.stderr
    assert deployments(env) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGUSR1, 75)])
def test_signals_take_it_down_and_it_goes_on_later(
    directory: Path, env: dict[str, str], number: signal.Signals, code: int
) -> None:
    slow = command(directory, "--set", "engine.mock.speedup=0.5", "--concurrency", "32")
    process = subprocess.Popen([HPCSERVE, *slow], env=env, stderr=subprocess.PIPE)
    assert ended(process, directory, number) == code, process.stderr.read() if process.stderr else b""
    if process.stderr is not None:
        process.stderr.close()
    assert 0 < num_answers(directory) < NUM
    assert processes_of(Path(env["HPCSERVE_STATE_DIR"])) == []
    fast = command(directory, "--json", "--set", "engine.mock.speedup=.inf")
    assert json.loads(run_hpcserve(*fast, env=env, check=True).stdout)["finished"] == NUM
    assert num_answers(directory) == NUM


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGUSR1, 75)])
def test_a_signal_while_it_comes_up_takes_it_down(
    directory: Path, env: dict[str, str], number: signal.Signals, code: int
) -> None:
    process = subprocess.Popen(
        [HPCSERVE, *command(directory, "--set", "engine.mock.load_s=60")], env=env, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    with process.stderr:
        assert any("loading" in line for line in process.stderr)
        process.send_signal(number)
        said = process.stderr.read()
    assert process.wait(60) == code, said
    assert processes_of(Path(env["HPCSERVE_STATE_DIR"])) == []


def test_an_engine_that_cannot_start_is_told_with_its_reason(directory: Path, env: dict[str, str]) -> None:
    wrong = directory / "timing.json"
    wrong.write_text("no timing")
    done = run_hpcserve(*command(directory, "--set", f"engine.mock.timing={wrong}"), env=env)
    assert done.returncode not in (0, 130)
    assert "timing" in done.stderr
    assert processes_of(Path(env["HPCSERVE_STATE_DIR"])) == []
