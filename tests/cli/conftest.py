"""A command line whose deployments live in a folder of the test, and touch nothing of the user's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from hpcserve.cli import main

Run = Callable[..., Result]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HPCSERVE_CONFIG", "HPCSERVE_NAME", "HPCSERVE_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HPCSERVE_STATE_DIR", str(tmp_path / "state"))
    return tmp_path


@pytest.fixture
def run(home: Path) -> Run:
    def invoke(*args: str, serve: object = None) -> Result:
        return CliRunner().invoke(main, list(args), obj=serve, catch_exceptions=False)

    return invoke
