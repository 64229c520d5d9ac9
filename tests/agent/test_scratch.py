from __future__ import annotations

from pathlib import Path

import pytest

from hpcserve.agent.__main__ import scratch_root
from hpcserve.config import Config
from hpcserve.errors import ConfigError


def on(scratch: str) -> Config:
    return Config.model_validate({"cluster": {"scratch": scratch}})


def test_the_scratch_directory_is_what_the_nodes_own_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_SSD", str(tmp_path))
    assert scratch_root(on("$LOCAL_SSD")) == str(tmp_path)
    assert scratch_root(Config()) is None


def test_a_scratch_directory_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_SSD", raising=False)
    with pytest.raises(ConfigError, match=r"cluster\.scratch = \$LOCAL_SSD/x is no directory on"):
        scratch_root(on("$LOCAL_SSD/x"))
