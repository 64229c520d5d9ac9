"""The small model that needs no download."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpcserve.engine.tiny_model import CONTEXT, VOCAB_SIZE, make_tiny_model
from hpcserve.errors import ConfigError
from tests.contract.models import make_in_child


def test_a_directory_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="is not empty"):
        make_tiny_model(tmp_path)
    with pytest.raises(ConfigError, match="is not empty"):
        make_tiny_model(tmp_path / "mine.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(ConfigError, match=r"needs torch.*hpcserve\[cpu\]"):
        make_tiny_model(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.real
@pytest.mark.vllm
def test_it_has_what_a_server_reads(tiny_model: Path) -> None:
    config = json.loads((tiny_model / "config.json").read_text())
    assert (config["max_position_embeddings"], config["vocab_size"]) == (CONTEXT, VOCAB_SIZE)
    tokenizer = json.loads((tiny_model / "tokenizer_config.json").read_text())
    assert "messages" in tokenizer["chat_template"]
    assert (tokenizer["bos_token"], tokenizer["eos_token"]) == ("<s>", "</s>")
    assert len(json.loads((tiny_model / "tokenizer.json").read_text())["model"]["vocab"]) == VOCAB_SIZE


@pytest.mark.real
@pytest.mark.vllm
def test_it_is_the_same_every_time(tiny_model: Path, tmp_path: Path) -> None:
    make_in_child(tmp_path / "again")
    for file in tiny_model.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name
