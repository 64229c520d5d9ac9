"""A model for the suites that load one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_MAKE = "import sys, pathlib, hpcserve.engine.tiny_model as t; t.make_tiny_model(pathlib.Path(sys.argv[1]))"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama."""
    directory = tmp_path_factory.mktemp("model") / "tiny"
    make_in_child(directory)
    return directory


def make_in_child(directory: Path) -> None:
    """Make the model in a process of its own: PyTorch's imports warn, and warnings are errors here."""
    subprocess.run([sys.executable, "-c", _MAKE, str(directory)], check=True, timeout=120)
