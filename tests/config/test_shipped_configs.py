"""Every file in configs/ loads as it is, given a model where it names none."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcserve.config import Config, PoolFlags, Setting, load

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
MODEL = Setting(("model", "path"), "/models/some-model", "--model")


def shipped(name: str, pools: PoolFlags | None = None) -> Config:
    (file,) = (path for path in CONFIGS if path.stem == name)
    return load(file=file, flags=[MODEL], pools=pools, environ={}).config


@pytest.mark.parametrize("name", [path.stem for path in CONFIGS])
def test_it_loads(name: str) -> None:
    assert shipped(name).name


def test_the_documented_ones_are_there() -> None:
    documented = {"local", "mock", "slurm-aggregated", "slurm-disaggregated", "site-example"}
    assert documented <= {path.stem for path in CONFIGS}


def test_local_and_mock_need_no_flags() -> None:
    for name in ("local", "mock"):
        (file,) = (path for path in CONFIGS if path.stem == name)
        assert load(file=file, environ={}).config.cluster.kind == "local"


def test_eight_nodes_disaggregated_are_two_and_six() -> None:
    config = shipped("slurm-disaggregated", PoolFlags(nodes=8))
    assert config.pools.sizes == {"prefill": 2, "decode": 6}
    assert config.cluster.kind == "slurm"


def test_four_nodes_aggregated_are_four_workers() -> None:
    assert shipped("slurm-aggregated", PoolFlags(nodes=4)).pools.sizes == {"both": 4}


def test_the_site_example_keeps_words_that_yaml_could_take_for_something_else() -> None:
    config = shipped("site-example")
    assert config.security.auth == "on"
    assert config.cluster.slurm.constraint == "[a100|h100]"
    assert config.cluster.scratch == Path("$TMPDIR")
