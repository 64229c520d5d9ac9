"""What --nodes, --prefill, --decode and --mode say together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcserve.config import PoolFlags, load
from hpcserve.config.models import PoolsConfig
from hpcserve.errors import ConfigError


def pools(flags: PoolFlags, *assignments: str) -> PoolsConfig:
    return load(assignments=["engine.kind=mock", *assignments], pools=flags, environ={}).config.pools


def refusal(flags: PoolFlags, *assignments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        pools(flags, *assignments)
    return caught.value.message


DISAGGREGATED = "pools.mode=disaggregated"


def test_nodes_of_an_aggregated_deployment_are_its_workers() -> None:
    assert pools(PoolFlags(nodes=8)).sizes == {"both": 8}


@pytest.mark.parametrize(("nodes", "prefill"), [(2, 1), (3, 1), (4, 1), (6, 2), (8, 2), (16, 4), (100, 25)])
def test_a_quarter_of_the_nodes_prefills(nodes: int, prefill: int) -> None:
    assert pools(PoolFlags(nodes=nodes), DISAGGREGATED).sizes == {"prefill": prefill, "decode": nodes - prefill}
    assert pools(PoolFlags(nodes=nodes, mode="disaggregated")).sizes == {"prefill": prefill, "decode": nodes - prefill}


def test_a_configured_split_that_adds_up_is_kept() -> None:
    split = (DISAGGREGATED, "pools.prefill=3", "pools.decode=5")
    assert pools(PoolFlags(nodes=8), *split).sizes == {"prefill": 3, "decode": 5}
    assert pools(PoolFlags(nodes=4), *split).sizes == {"prefill": 1, "decode": 3}


def test_prefill_and_decode_imply_disaggregation() -> None:
    assert pools(PoolFlags(prefill=2, decode=6)).sizes == {"prefill": 2, "decode": 6}
    assert pools(PoolFlags(decode=3)).sizes == {"prefill": 1, "decode": 3}
    assert pools(PoolFlags(nodes=8, prefill=3)).sizes == {"prefill": 3, "decode": 5}
    assert pools(PoolFlags(nodes=8, decode=7)).sizes == {"prefill": 1, "decode": 7}
    assert pools(PoolFlags(nodes=8, prefill=3, decode=5)).sizes == {"prefill": 3, "decode": 5}


def test_the_mode_can_be_turned_back() -> None:
    assert pools(PoolFlags(mode="aggregated", nodes=3), DISAGGREGATED).sizes == {"both": 3}


def test_origins_name_the_flags() -> None:
    given = PoolFlags(nodes=8, prefill=3)
    origins = load(assignments=["engine.kind=mock"], pools=given, environ={}).origins
    assert origins["pools.mode"] == "--nodes 8 --prefill 3"
    assert (origins["pools.prefill"], origins["pools.decode"]) == ("--prefill", "--nodes")


def test_nodes_are_whole_nodes() -> None:
    loaded = load(assignments=["engine.kind=mock"], pools=PoolFlags(nodes=2), environ={})
    assert loaded.config.cluster.slurm.exclusive
    assert loaded.origins["cluster.slurm.exclusive"] == "--nodes"
    assert not load(
        assignments=["engine.kind=mock"], pools=PoolFlags(decode=2), environ={}
    ).config.cluster.slurm.exclusive


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (PoolFlags(nodes=1, mode="disaggregated"), "--nodes 1: disaggregated mode needs at least 2 nodes"),
        (PoolFlags(nodes=8, prefill=2, decode=5), "--nodes 8 --prefill 2 --decode 5: 2 + 5 is not 8"),
        (PoolFlags(nodes=2, prefill=2), "--nodes 2 --prefill 2: no node is left for the other pool"),
        (PoolFlags(nodes=2, decode=3), "--nodes 2 --decode 3: no node is left for the other pool"),
        (PoolFlags(prefill=1, mode="aggregated"), "--mode aggregated has no prefill and decode pools"),
        (PoolFlags(nodes=0), "--nodes 0: must be at least 1"),
        (PoolFlags(prefill=-1), "--prefill -1: must be at least 1"),
    ],
)
def test_flags_that_do_not_add_up_are_refused(flags: PoolFlags, message: str) -> None:
    assert refusal(flags).startswith(message)


sizes = st.none() | st.integers(-1, 12)
modes = st.sampled_from([None, "aggregated", "disaggregated"])


@given(sizes, sizes, sizes, modes, st.booleans())
def test_every_combination_is_refused_or_honours_every_flag(nodes, prefill, decode, mode, disaggregated) -> None:  # type: ignore[no-untyped-def]
    below = [DISAGGREGATED] if disaggregated else []
    try:
        got = pools(PoolFlags(nodes, prefill, decode, mode), *below)
    except ConfigError:
        return
    assert nodes in (None, sum(got.sizes.values()))
    assert prefill in (None, got.sizes.get("prefill"))
    assert decode in (None, got.sizes.get("decode"))
    assert mode in (None, got.mode)
    assert all(size >= 1 for size in got.sizes.values())
