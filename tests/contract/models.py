"""A model for the suites that load one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_MAKE = "import sys, pathlib, hpcserve.engine.tiny_model as t; t.make_tiny_model(pathlib.Path(sys.argv[1]))"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama; made in a child, since PyTorch's imports warn."""
    directory = tmp_path_factory.mktemp("model") / "tiny"
    subprocess.run([sys.executable, "-c", _MAKE, str(directory)], check=True, timeout=120)
    return directory
