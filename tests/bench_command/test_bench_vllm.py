"""A real vLLM on the CPU: what is fitted predicts what is measured next, and simulate takes the file."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

TRACE = Path(__file__).parents[1] / "data" / "mooncake_conversation_200.jsonl"
COMMAND = [sys.executable, "-c", "from hpcserve.cli import main; main(prog_name='hpcserve')"]
CACHE = ("--set", "engine.vllm.args.kv_cache_memory_bytes=268435456")  # 32,768 tokens: filled in seconds

pytestmark = [pytest.mark.real, pytest.mark.vllm, pytest.mark.timeout(300)]


def hpcserve(*args: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*COMMAND, *args], capture_output=True, text=True, timeout=240, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def file(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("timing") / "timing.json"
    hpcserve("bench", "--model", str(tiny_model), *CACHE, "--max-prompt", "1024", "-o", str(path))
    return path


def test_the_file_is_of_this_engine(file: Path) -> None:
    timing = json.loads(file.read_text())
    assert timing["provenance"]["engine"] == "vllm"
    assert timing["provenance"]["model"] == "tiny"
    assert timing["kv_bytes_per_token"] == 2 * 4 * 256 * 4  # keys and values, layers, width, bytes of a float32
    assert timing["num_kv_blocks"] * timing["block_size"] == 32768
    assert timing["prefill_ms"][1] > 0
    assert timing["min_decode_ms"] > 0


def test_fitted_and_measured_agree(file: Path) -> None:
    provenance = json.loads(file.read_text())["provenance"]
    # half of the points: a machine that is busy for a while disturbs the others
    assert statistics.median(abs(p["fitted_ms"] / p["pass_ms"] - 1) for p in provenance["prefill"]) < 0.2
    assert statistics.median(abs(p["fitted_ms"] / p["step_ms"] - 1) for p in provenance["decode"]) < 0.25
    assert all(p["pass_ms"] > 0 for p in provenance["prefill"])
    assert max(p["share"] for p in provenance["decode"]) > 0.3


def test_simulate_takes_its_sizes_and_its_timing(file: Path) -> None:
    simulate = ("simulate", "--trace", str(TRACE), "--requests", "20", "--workers", "2", "--json")
    report = json.loads(hpcserve(*simulate, "--timing", str(file)))
    published = json.loads(hpcserve(*simulate))
    assert report["num_requests"] + report["num_rejected"] >= 20
    assert report["ttft_ms"]["mean"] > 2 * published["ttft_ms"]["mean"], "a CPU is slower than a GPU"


def test_a_directory_without_a_model_is_a_clear_error(tmp_path: Path) -> None:
    command = [*COMMAND, "bench", "--model", str(tmp_path), "-o", str(tmp_path / "timing.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    assert "holds no config.json" in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []
