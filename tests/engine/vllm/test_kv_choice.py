"""Which connector moves an engine's KV, and what is refused before a model is loaded. Needs no vLLM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hpcserve.config import Config
from hpcserve.config.load import load
from hpcserve.engine.protocol import EngineContext
from hpcserve.engine.vllm.arguments import engine_arguments
from hpcserve.engine.vllm.kv_choice import check_mpi
from hpcserve.errors import ConfigError
from hpcserve.types import Role, WorkerId

CONTEXT = EngineContext(worker=WorkerId("w"), role=Role.BOTH, host="127.0.0.1", moves_kv=True, scratch=Path("/nowhere"))
MPI: dict[str, Any] = {"kv": {"transport": "mpi", "timeout_s": 7.0}, "cluster": {"kind": "mpi"}}


def arguments_of(directory: Path, settings: dict[str, Any]) -> tuple[Config, dict[str, Any]]:
    (directory / "config.json").write_text("{}")
    config = Config.model_validate({"model": {"path": directory}} | settings)
    return config, engine_arguments(config, CONTEXT, events_endpoint="ipc:///nowhere/events", on_cpu=True)


def test_mpi_takes_our_connector_and_tells_it_what_it_needs(tmp_path: Path) -> None:
    config, arguments = arguments_of(tmp_path, MPI)
    transfer = arguments["kv_transfer_config"]
    assert transfer["kv_connector"] == "TransportConnector"
    assert transfer["kv_load_failure_policy"] == "recompute"
    assert transfer["kv_connector_extra_config"]["timeout_s"] == 7.0
    check_mpi(config, CONTEXT, arguments, in_process=True)


@pytest.mark.parametrize("transport", ["auto", "nixl"])
def test_nixl_stays_what_it_was(tmp_path: Path, transport: str) -> None:
    config, arguments = arguments_of(tmp_path, {"kv": {"transport": transport}})
    assert arguments["kv_transfer_config"]["kv_connector"] == "NixlConnector"
    assert "kv_connector_extra_config" not in arguments["kv_transfer_config"]
    check_mpi(config, CONTEXT, arguments, in_process=True)


@pytest.mark.parametrize(
    ("settings", "in_process", "why"),
    [
        ({"cluster": {"kind": "local"}}, True, "for the ranks of one allocation"),
        ({"model": {"tensor_parallel": 2}}, True, r"in_process: false"),
        ({"engine": {"vllm": {"args": {"pipeline_parallel_size": 2}}}}, False, "pipeline_parallel_size"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, settings: dict[str, Any], in_process: bool, why: str) -> None:
    model = {"path": tmp_path} | settings.get("model", {})
    config, arguments = arguments_of(tmp_path, MPI | settings | {"model": model})
    with pytest.raises(ConfigError, match=why):
        check_mpi(config, CONTEXT, arguments, in_process=in_process)


def test_several_gpus_are_fine_with_a_courier(tmp_path: Path) -> None:
    config, arguments = arguments_of(tmp_path, MPI | {"model": {"path": tmp_path, "tensor_parallel": 2}})
    check_mpi(config, CONTEXT, arguments, in_process=False)


def test_mpi_on_another_cluster_is_refused_with_both_keys(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("engine: {kind: mock}\ncluster: {kind: slurm}\nkv: {transport: mpi}\n")
    with pytest.raises(ConfigError, match=r"kv\.transport = 'mpi' .*cluster\.kind = 'slurm'"):
        load(file=file, environ={})
