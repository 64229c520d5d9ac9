"""Which way an engine's KV goes, and whether that can work here. NIXL's part is vLLM's own connector."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcserve.config import Config
from hpcserve.engine.protocol import EngineContext
from hpcserve.engine.vllm import plugin
from hpcserve.errors import ConfigError

if TYPE_CHECKING:
    from hpcserve.kv.courier_rank import Courier

_COURIER = "the engine has processes of its own, so KV goes through shared memory: two more copies on each side"


def why_no_kv(config: Config) -> str | None:
    """Return why KV cannot be moved here; None if it can. Imports what moves it, so `plugin.register` comes first."""
    return plugin.why_no_nixl() if config.kv.transport != "mpi" else _why_no_mpi()


def check_mpi(config: Config, context: EngineContext, arguments: dict[str, Any], *, in_process: bool) -> None:
    """Raise `ConfigError` for an engine that cannot move KV by MPI."""
    if config.kv.transport != "mpi" or not context.moves_kv:
        return
    if config.cluster.kind != "mpi":
        raise ConfigError(
            f"kv.transport is mpi, which is for the ranks of one allocation; cluster.kind is {config.cluster.kind}: "
            "take --cluster mpi, or kv.transport: nixl",
            param="kv.transport",
        )
    if arguments.get("pipeline_parallel_size", 1) > 1:
        raise ConfigError(
            "kv.transport is mpi, which cannot move the KV of pipeline_parallel_size > 1; take nixl",
            param="kv.transport",
        )
    if in_process and arguments["tensor_parallel_size"] > 1:
        raise ConfigError(
            f"model.tensor_parallel is {arguments['tensor_parallel_size']}: such an engine has processes of its own, "
            "in which MPI cannot be; set engine.vllm.in_process: false, and KV goes through a courier",
            param="engine.vllm.in_process",
        )


def open_courier(arguments: dict[str, Any], sockets: Path, warnings: list[str]) -> Courier:
    """Carry KV by MPI for an engine with processes of its own. Close what is returned after the engine."""
    from hpcserve.kv.courier_rank import Courier
    from hpcserve.kv.mpi_world import join_world

    path = sockets / "kv"
    courier = Courier(path, join_world())
    arguments["kv_transfer_config"]["kv_connector_extra_config"]["courier"] = str(path)
    warnings.append(_COURIER)
    return courier


def _why_no_mpi() -> str | None:
    try:
        import mpi4py  # noqa: F401

        from hpcserve.engine.vllm import transport_connector  # noqa: F401
    except ImportError as err:
        return f"KV cannot go by MPI here ({err})"
    return None
