"""One `hpcserve batch run --standalone` for benchmarks: vLLM on the CPU, its summary as it printed it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

HPCSERVE = str(Path(sys.executable).with_name("hpcserve"))
MODEL = "tiny"


def write_completions(path: Path, prompts: Iterable[str | list[int]], max_tokens: int) -> None:
    """Write one greedy completion a prompt, of exactly so many tokens."""
    with path.open("w") as file:
        for number, prompt in enumerate(prompts):
            body = {"model": MODEL, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
            line = {"custom_id": f"r-{number}", "method": "POST", "url": "/v1/completions", "body": body}
            file.write(json.dumps(line) + "\n")


def run_batch(
    directory: Path,
    given: Path,
    model: Path,
    *,
    num_workers: int,
    vllm: dict[str, Any] | None = None,
    mock: dict[str, Any] | None = None,
    options: Sequence[str] = (),
) -> dict[str, Any]:
    """Run a batch from nothing to nothing and return its summary, whose `seconds` are those of the requests alone.

    `vllm` are vLLM's arguments; `mock`, if given, the settings of mock engines, which run instead.
    """
    others = {name: value for name, value in os.environ.items() if not name.startswith("HPCSERVE_")}
    env = others | {"HPCSERVE_STATE_DIR": str(directory / "state"), "OMP_NUM_THREADS": "1"}
    command = [HPCSERVE, "batch", "run", given, "-o", directory / "out.jsonl", "--fresh", "--json", "--standalone"]
    command += ["--cluster", "local", "--model", model, "--nodes", num_workers]
    command += ["--engine", "vllm" if mock is None else "mock"]
    for name, value in (mock or {}).items():
        command += ["--set", f"engine.mock.{name}={value}"]
    command += [
        "--set",
        f"model.name={MODEL}",
        "--set",
        "model.max_model_len=2048",
        "--set",
        f"engine.vllm.args={json.dumps(vllm or {})}",
        *options,
    ]
    done = subprocess.run(list(map(str, command)), env=env, stdout=subprocess.PIPE, text=True, check=True, timeout=1200)
    told: dict[str, Any] = json.loads(done.stdout)
    assert told["complete"]
    assert told["failed"] == 0, told
    return told
