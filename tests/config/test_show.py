"""`config show` prints what loading it again gives."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st

from hpcserve.config import Config, load
from hpcserve.config.show import as_json, as_yaml

words = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=12)
numbers = st.integers(-(2**40), 2**40)
open_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | numbers | st.floats(allow_nan=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.from_regex(r"[a-z_]{1,6}", fullmatch=True), inner),
    max_leaves=6,
)
trees = st.fixed_dictionaries(
    {"engine": st.fixed_dictionaries({"kind": st.just("mock")}, optional={"block_size": st.integers(1, 512)})},
    optional={
        "name": st.from_regex(r"[a-z0-9][a-z0-9-]{0,39}", fullmatch=True),
        "cluster": st.fixed_dictionaries(
            {},
            optional={
                "slurm": st.fixed_dictionaries(
                    {},
                    optional={
                        "account": words | st.none(),
                        "partition": words,
                        "extra_directives": st.lists(words, max_size=3),
                        "prologue": st.lists(words, max_size=3),
                        "gpus": st.integers(0, 8),
                    },
                )
            },
        ),
        "frontend": st.fixed_dictionaries({"port": st.integers(0, 65535), "drain_timeout_s": st.floats(0, 1e6)}),
    },
)


def loaded_from(text: str) -> Any:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "c.yaml"
        file.write_text(text)
        return load(file=file, environ={})


@given(trees, st.dictionaries(st.from_regex(r"[a-z_]{1,6}", fullmatch=True), open_values, max_size=3))
def test_what_is_shown_loads_to_the_same_configuration(tree: dict[str, Any], args: dict[str, Any]) -> None:
    tree = {**tree, "engine": {**tree["engine"], "vllm": {"args": args}}}
    first = loaded_from(json.dumps(tree).replace("Infinity", ".inf"))
    second = loaded_from(as_yaml(first))
    assert second.config == first.config


def test_values_carry_their_origin_and_defaults_do_not() -> None:
    text = as_yaml(load(assignments=["engine.kind=mock"], environ={"HPCSERVE_NAME": "demo"}))
    commented = [" ".join(line.split()) for line in text.splitlines() if "#" in line]
    assert commented == ["name: demo # $HPCSERVE_NAME", "kind: mock # --set"]
    assert set(yaml.safe_load(text)) == set(Config.model_fields)


def test_json_holds_configuration_and_origins() -> None:
    shown = as_json(load(assignments=["engine.kind=mock", "engine.mock.speedup=inf"], environ={}))
    assert Config.model_validate_json(json.dumps(shown["config"], allow_nan=False)).engine.mock.speedup == float("inf")
    assert shown["origins"]["engine.kind"] == "--set"
