"""vLLM's own benchmark client, unmodified, against a deployment: what people measure other servers with works here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.system.conftest import Deployment

pytestmark = [pytest.mark.real, pytest.mark.vllm, pytest.mark.timeout(240)]

NUM_PROMPTS = 24
OUTPUT_TOKENS = 12
# What the `vllm` command does with "bench serve"; the command itself needs the package under its GPU build's name.
RUN = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""


@pytest.fixture
def deployment(deploy: Callable[..., Deployment], tiny_model: Path) -> Deployment:
    flags = ("--cluster", "local", "--engine", "mock", "--nodes", "2", "--set", "security.auth=on")
    return deploy(*flags, "--model", str(tiny_model), "--set", "model.name=tiny")


def bench(deployment: Deployment, model: Path, tmp_path: Path, backend: str, path: str) -> dict[str, Any]:
    arguments = {
        "--backend": backend,
        "--base-url": deployment.endpoint.removesuffix("/v1"),
        "--endpoint": path,
        "--model": "tiny",
        "--tokenizer": str(model),
        "--dataset-name": "random",
        "--random-input-len": "64",
        "--random-output-len": str(OUTPUT_TOKENS),
        "--num-prompts": str(NUM_PROMPTS),
        "--max-concurrency": "8",
        "--result-dir": str(tmp_path),
        "--result-filename": "result.json",
    }
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            RUN,
            *(word for pair in arguments.items() for word in pair),
            "--save-result",
            "--ignore-eos",
        ],
        env=os.environ | {"OPENAI_API_KEY": deployment.key, "VLLM_LOGGING_LEVEL": "WARNING"},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(json.loads((tmp_path / "result.json").read_text()))


@pytest.mark.parametrize(("backend", "path"), [("openai-chat", "/v1/chat/completions"), ("openai", "/v1/completions")])
def test_vllm_bench_serve_completes_every_request(
    deployment: Deployment, tiny_model: Path, tmp_path: Path, backend: str, path: str
) -> None:
    result = bench(deployment, tiny_model, tmp_path, backend, path)

    assert (result["completed"], result["failed"]) == (NUM_PROMPTS, 0)
    assert result["total_output_tokens"] == NUM_PROMPTS * OUTPUT_TOKENS
    assert result["median_ttft_ms"] > 0
    assert result["median_itl_ms"] > 0
