"""A model for the suites that load one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

_MAKE = (
    "import sys, pathlib, hpcserve.engine.tiny_model as t; t.make_tiny_model(pathlib.Path(sys.argv[1]), sys.argv[2:])"
)
MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama."""
    directory = tmp_path_factory.mktemp("model") / "tiny"
    make_in_child(directory)
    return directory


@pytest.fixture(scope="session")
def marked_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, with a word for each mark of reasoning and of tool calls."""
    directory = tmp_path_factory.mktemp("model") / "marked"
    make_in_child(directory, MARKS)
    return directory


def make_in_child(directory: Path, extra_tokens: Sequence[str] = ()) -> None:
    """Make the model in a process of its own: PyTorch's imports warn, and warnings are errors here."""
    subprocess.run([sys.executable, "-c", _MAKE, str(directory), *extra_tokens], check=True, timeout=120)
