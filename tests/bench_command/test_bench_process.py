"""The command as a process: the file it writes, what it prints, how it fails, and how it is interrupted."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.real  # an engine is measured by the clock, which takes its time

TRACE = Path(__file__).parents[1] / "data" / "mooncake_conversation_200.jsonl"
COMMAND = [sys.executable, "-c", "from hpcserve.cli import main; main(prog_name='hpcserve')"]
# few blocks, a mock that is ahead of time: what takes time here is starting Python
MOCK = ("--engine", "mock", "--quick", "--set", "engine.mock.num_kv_blocks=2048", "--set", "engine.mock.speedup=4")


def hpcserve(*args: str, timeout_s: float = 50) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *args], capture_output=True, text=True, timeout=timeout_s, check=False)


def scratch(path: Path) -> tuple[str, str]:
    path.mkdir()
    return "--set", f"cluster.scratch={path}"


def test_what_it_writes_is_what_simulate_reads(tmp_path: Path) -> None:
    file = tmp_path / "timing.json"
    done = hpcserve("bench", *MOCK, *scratch(tmp_path / "scratch"), "-o", str(file), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(file.read_text())
    assert "hpcserve simulate --timing" in done.stderr
    assert list((tmp_path / "scratch").iterdir()) == []

    simulate = ("simulate", "--trace", str(TRACE), "--requests", "1", "--json", "--timing", str(file))
    report = json.loads(hpcserve(*simulate).stdout)
    square, linear, constant = json.loads(file.read_text())["prefill_ms"]
    assert report["ttft_ms"]["mean"] == pytest.approx(square * 6758**2 + linear * 6758 + constant)
    # 2,048 blocks of 32 tokens hold no prompt of 70,000 tokens; that many of 64, as asked for, do
    long_one = tmp_path / "long.jsonl"
    ids = list(range(-(-70_000 // 512)))
    long_one.write_text(json.dumps({"timestamp": 0, "input_length": 70_000, "output_length": 1, "hash_ids": ids}))
    simulate = ("simulate", "--trace", str(long_one), "--json", "--timing", str(file))
    assert json.loads(hpcserve(*simulate).stdout)["num_rejected"] == 1
    assert json.loads(hpcserve(*simulate, "--block-size", "64").stdout)["num_rejected"] == 0


def test_the_table_shows_measured_beside_fitted(tmp_path: Path) -> None:
    done = hpcserve("bench", *MOCK, "--max-prompt", "512", "-o", str(tmp_path / "timing.json"))
    assert done.returncode == 0, done.stderr
    for text in ("prefill, tokens", "pass ms", "fitted ms", "KV read", "TTFT beyond pass", "2,048 blocks of 32 tokens"):
        assert text in done.stdout


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        ((*MOCK, "-o", "/nowhere/timing.json"), "cannot write /nowhere/timing.json"),
        ((*MOCK, "--set", "engine.mock.speedup=.inf"), "speedup is .inf"),
        ((*MOCK, "--set", "cluster.scratch=/nowhere"), "cluster.scratch = /nowhere is no directory"),
        (("--engine", "vllm"), "model.path is not set"),
        ((*MOCK, "--max-prompt", "0"), "max-prompt"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = hpcserve("bench", *args)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line != "starting mock"]
    assert line.startswith("error: ")
    assert complaint in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_writes_nothing_and_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    file, slow = tmp_path / "timing.json", ("--set", "engine.mock.speedup=0.1")
    command = [*COMMAND, "bench", *MOCK, *slow, *scratch(tmp_path / "scratch"), "-o", str(file)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child:
        try:
            assert child.stderr is not None
            assert any("prefill:" in line for line in child.stderr)
            child.send_signal(number)
            assert child.wait(20) == 130
        finally:
            child.kill()
    assert not file.exists()
    assert list((tmp_path / "scratch").iterdir()) == []
