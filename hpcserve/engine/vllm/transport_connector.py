"""A vLLM connector over any `KVTransport`. vLLM loads this module by name, once in its scheduler and once a worker.

For vLLM 0.32. Only models whose KV is of one kind and one layout (no hybrids), and no pipeline parallelism. A handle
may cover less than the prompt; the rest is computed. What the transport is, the engine says in
`kv_connector_extra_config`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
)
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from hpcserve.engine.vllm.moved import watch_moves
from hpcserve.engine.vllm.transport_orders import End, Orders
from hpcserve.engine.vllm.transport_scheduler import TransportScheduler
from hpcserve.engine.vllm.transport_worker import TransportWorker
from hpcserve.errors import KVError
from hpcserve.kv.factory import open_transport
from hpcserve.kv.transport import KVTransport


@dataclass
class _Metadata(KVConnectorMetadata):  # type: ignore[misc]
    orders: Orders


@dataclass
class _Handshake(KVConnectorHandshakeMetadata):  # type: ignore[misc]
    end: End


class TransportConnector(KVConnectorBase_V1):  # type: ignore[misc]
    """Hands vLLM's calls to the half that this process has. vLLM takes its requests' ids for their leases' names."""

    _cache_hit_source = CacheHitSource.P2P

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        if len(kv_cache_config.kv_cache_groups) != 1:
            raise KVError(
                f"this model has {len(kv_cache_config.kv_cache_groups)} kinds of KV cache, and only those with one can "
                "move KV here; take kv.transport: nixl, or aggregated pools with router.pull: false"
            )
        self._num_blocks = kv_cache_config.num_blocks
        self._block_size = kv_cache_config.kv_cache_groups[0].kv_cache_spec.block_size
        self._scheduler: Any = None  # Any: vLLM calls each method on the half that it belongs to only
        self._worker: Any = None
        extra = vllm_config.kv_transfer_config.kv_connector_extra_config
        if role == KVConnectorRole.SCHEDULER:
            self._scheduler = TransportScheduler(
                extra["transport"], self._block_size, keep_every_s=extra["timeout_s"] / 3
            )
        else:
            self._worker = TransportWorker(_open(extra), _tensor_rank(), lease_s=2 * extra["timeout_s"])

    def bind_gpu_block_pool(self, gpu_block_pool: Any) -> None:
        """See vLLM; the pool of the scheduler."""
        self._scheduler.moved = watch_moves(gpu_block_pool)

    def set_xfer_handshake_metadata(self, metadata: dict[int, Any]) -> None:
        """See vLLM; what the workers say of themselves, by tensor-parallel rank."""
        self._scheduler.ends = {rank: each.end for rank, each in metadata.items()}

    def on_new_request(self, request: Any) -> None:
        """See vLLM."""
        self._scheduler.on_new_request(request)

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        """See vLLM."""
        matched: tuple[int, bool] = self._scheduler.get_num_new_matched_tokens(request, num_computed_tokens)
        return matched

    def get_loaded_kv_cache_group_ids(self, request: Any) -> tuple[int, ...]:
        """See vLLM; a pull brings the request's own blocks."""
        return (0,)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """See vLLM."""
        self._scheduler.update_state_after_alloc(request, blocks, num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        """See vLLM."""
        return _Metadata(self._scheduler.build_orders())

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """See vLLM."""
        finished: tuple[bool, dict[str, Any] | None] = self._scheduler.request_finished(request, block_ids)
        return finished

    def update_connector_output(self, connector_output: Any) -> None:
        """See vLLM."""
        self._scheduler.update(connector_output.finished_sending or (), connector_output.finished_recving or ())

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        """See vLLM. Raises `KVError` for layouts that cannot be moved."""
        self._worker.register(kv_caches, self._num_blocks, self._block_size)

    def get_handshake_metadata(self) -> KVConnectorHandshakeMetadata | None:
        """See vLLM."""
        return _Handshake(self._worker.end())

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """See vLLM; nothing here waits, and the step's own work needs none of it."""
        self._worker.obey(self._get_connector_metadata().orders)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """See vLLM; requests whose KV is not here are not part of a step."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """See vLLM; peers read the cache itself."""

    def wait_for_save(self) -> None:
        """See vLLM; nothing is saved."""

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """See vLLM."""
        finished: tuple[set[str], set[str]] = self._worker.take_finished()
        return finished

    def get_block_ids_with_load_errors(self) -> set[int]:
        """See vLLM."""
        failed: set[int] = self._worker.take_failed_blocks()
        return failed

    def shutdown(self) -> None:
        """See vLLM; afterwards nobody reads or writes the engine's memory."""
        if self._worker is not None:
            self._worker.close()


def _open(extra: dict[str, Any]) -> KVTransport:
    if courier := extra.get("courier"):
        from hpcserve.kv.courier import CourierTransport

        return CourierTransport(Path(courier), timeout_s=extra["timeout_s"], strict=extra["strict"])
    if extra["transport"] == "mpi" and os.getpid() != extra["rank_pid"]:
        raise KVError(
            "this engine has processes of its own, in which MPI cannot be, and nobody opened a courier for it"
        )
    return open_transport(extra["transport"], timeout_s=extra["timeout_s"], strict=extra["strict"])


def _tensor_rank() -> int:
    from vllm.distributed.parallel_state import get_tensor_model_parallel_rank

    return int(get_tensor_model_parallel_rank())
