"""From configuration to vLLM's arguments, and what is refused on the way. Needs no vLLM."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hpcserve.config import Config
from hpcserve.engine.protocol import EngineContext
from hpcserve.engine.vllm.arguments import check_extra_arguments, engine_arguments
from hpcserve.engine.vllm.environment import cpu_threads
from hpcserve.engine.vllm.load import LoadMeter
from hpcserve.engine.vllm.loading import load_vllm
from hpcserve.errors import ConfigError
from hpcserve.types import Role, WorkerId


@dataclass
class FakeEngineArgs:
    max_num_seqs: int = 0
    gpu_memory_utilization: float = 0.0


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def make_arguments(
    path: Path | None, *, on_cpu: bool = True, moves_kv: bool = False, dtype: str = "auto", **config: Any
) -> Any:
    made = Config.model_validate({"model": {"path": path, "dtype": dtype}} | config)
    context = EngineContext(
        worker=WorkerId("w"), role=Role.BOTH, host="127.0.0.1", moves_kv=moves_kv, scratch=Path("/nowhere")
    )
    return engine_arguments(made, context, events_endpoint="ipc:///nowhere/events", on_cpu=on_cpu)


def test_cpus_get_what_vllm_needs_there(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    arguments = make_arguments(model)
    assert (arguments["dtype"], arguments["enforce_eager"]) == ("float32", True)
    assert arguments["kv_cache_memory_bytes"] == 1 << 30
    assert arguments["tensor_parallel_size"] == 1


def test_the_users_kv_space_is_kept(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "4")
    assert "kv_cache_memory_bytes" not in make_arguments(model)


def test_a_chosen_dtype_is_kept_on_cpus(model: Path) -> None:
    assert make_arguments(model, dtype="bfloat16")["dtype"] == "bfloat16"


def test_gpus_are_those_of_the_job(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    arguments = make_arguments(model, on_cpu=False)
    assert arguments["tensor_parallel_size"] == 4
    assert arguments["dtype"] == "auto"
    assert "enforce_eager" not in arguments


@pytest.mark.parametrize(("on_cpu", "device"), [(True, "cpu"), (False, "cuda")])
def test_engines_that_move_kv_do_it_with_nixl(model: Path, on_cpu: bool, device: str) -> None:
    assert "kv_transfer_config" not in make_arguments(model)
    transfer = make_arguments(model, moves_kv=True, on_cpu=on_cpu)["kv_transfer_config"]
    assert (transfer["kv_connector"], transfer["kv_buffer_device"]) == ("NixlConnector", device)
    assert transfer["kv_load_failure_policy"] == "recompute"


@pytest.mark.parametrize(
    ("pools", "router", "moves"),
    [
        ({"mode": "disaggregated"}, {"policy": "round_robin", "pull": False}, True),
        ({"workers": 2}, {}, True),
        ({"workers": 1}, {}, False),
        ({"workers": 2}, {"pull": False}, False),
        ({"workers": 2}, {"policy": "least_loaded"}, False),
    ],
)
def test_kv_is_movable_where_somebody_may_ask_for_it(
    pools: dict[str, Any], router: dict[str, Any], moves: bool
) -> None:
    assert Config.model_validate({"pools": pools, "router": router}).moves_kv is moves


def test_a_block_size_that_cpus_cannot_have_is_refused(model: Path) -> None:
    with pytest.raises(ConfigError, match=r"engine\.block_size is 48.*multiple of 32"):
        make_arguments(model, engine={"block_size": 48})
    assert make_arguments(model, on_cpu=False, engine={"block_size": 16})["block_size"] == 16


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        make_arguments(tmp_path / "missing")
    with pytest.raises(ConfigError, match=r"--model"):
        make_arguments(None)


def test_extra_arguments_reach_vllm(model: Path) -> None:
    assert make_arguments(model, engine={"vllm": {"args": {"max_num_seqs": 7}}})["max_num_seqs"] == 7


def test_an_unknown_extra_argument_names_the_nearest() -> None:
    check_extra_arguments(["max_num_seqs"], FakeEngineArgs)
    with pytest.raises(ConfigError, match=r"engine\.vllm\.args\.max_num_seq .*did you mean 'max_num_seqs'"):
        check_extra_arguments(["max_num_seq"], FakeEngineArgs)


def test_an_argument_that_hpcserve_sets_names_our_key() -> None:
    with pytest.raises(ConfigError, match=r"use model\.tensor_parallel"):
        check_extra_arguments(["tensor_parallel_size"], FakeEngineArgs)


def test_threads_are_the_configured_ones_or_a_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert cpu_threads(Config.model_validate({"cluster": {"local": {"threads": 3}}})) == 3
    assert cpu_threads(Config()) == 5
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    assert cpu_threads(Config.model_validate({"pools": {"workers": 2}})) == 4
    assert cpu_threads(Config.model_validate({"pools": {"workers": 20}})) == 1


@pytest.mark.parametrize("args", [{"runner": "pooling"}, {"convert": "embed"}])
def test_an_engine_that_embeds_caches_what_its_model_allows(model: Path, args: dict[str, Any]) -> None:
    arguments = make_arguments(model, engine={"vllm": {"args": args}})
    assert arguments["runner"] == "pooling"
    assert arguments["enable_prefix_caching"] is None
    assert make_arguments(model)["enable_prefix_caching"] is True


def test_an_engine_that_embeds_has_no_decode_part(model: Path, tmp_path: Path) -> None:
    config = Config.model_validate(
        {
            "model": {"path": model},
            "engine": {"vllm": {"args": {"runner": "pooling"}}},
            "pools": {"mode": "disaggregated"},
        }
    )
    context = EngineContext(worker=WorkerId("w"), role=Role.BOTH, host="127.0.0.1", moves_kv=True, scratch=tmp_path)
    with pytest.raises(ConfigError, match="no decode part"):
        load_vllm(config, context, LoadMeter(), tmp_path)


def test_the_engine_core_is_told_the_reasoning_parser(model: Path) -> None:
    assert "reasoning_parser" not in make_arguments(model)
    config = {"path": model, "reasoning_parser": "qwen3"}
    context = EngineContext(worker=WorkerId("w"), role=Role.BOTH, host="127.0.0.1", moves_kv=False, scratch=model)
    made = engine_arguments(Config.model_validate({"model": config}), context, events_endpoint="ipc://e", on_cpu=True)
    assert made["reasoning_parser"] == "qwen3"
    with pytest.raises(ConfigError, match=r"use model\.reasoning_parser"):
        check_extra_arguments(["reasoning_parser"], FakeEngineArgs)
