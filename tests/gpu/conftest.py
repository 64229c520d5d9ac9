"""Tests of this directory need an NVIDIA GPU and vLLM's CUDA build, and are skipped without."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

_ASK = "import sys, torch; sys.exit(not torch.cuda.is_available())"


@pytest.fixture(scope="session", autouse=True)
def gpu() -> None:
    """Skip unless PyTorch sees a GPU; asked in a child, since PyTorch's imports warn."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    if subprocess.run([sys.executable, "-c", _ASK], capture_output=True, timeout=120, check=False).returncode:
        pytest.skip("PyTorch sees no GPU")
