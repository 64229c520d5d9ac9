"""vLLM's NIXL connector, for handles that cover only the beginning of a prompt too. vLLM loads this module by name.

vLLM 0.32 takes a handle for the whole prompt; a shorter one trips an assertion in its worker and kills the engine. Here
the request says how many tokens its handle covers: those are pulled, and the rest is computed. A request may pull and
hand over. One that hands its KV over for good is forgotten first, once the other worker has it. Nothing else differs
from vLLM's connector.
"""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.connector import NixlPullConnector
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.pull_scheduler import NixlPullConnectorScheduler

from hpcserve.engine.vllm.moved import MovedBlocks, watch_moves
from hpcserve.engine.vllm.translate import COVERED, MOVES_AWAY


class NixlConnector(NixlPullConnector):  # type: ignore[misc]
    """Pulls what a handle covers. Named as the one that it stands for: vLLM's checks go by the name."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        if role == KVConnectorRole.SCHEDULER:
            self.connector_scheduler = _PrefixScheduler(vllm_config, self.engine_id, kv_cache_config)

    def bind_gpu_block_pool(self, gpu_block_pool: Any) -> None:
        """Take the pool, as vLLM hands it to the connector of its scheduler."""
        super().bind_gpu_block_pool(gpu_block_pool)
        self.connector_scheduler.moved = watch_moves(gpu_block_pool)


class _PrefixScheduler(NixlPullConnectorScheduler):  # type: ignore[misc]
    """Asks for blocks for the covered tokens only, so that ours are as many as the peer's."""

    moved: MovedBlocks | None = None

    def request_finished(self, request: Any, block_ids: tuple[list[int], ...]) -> tuple[bool, dict[str, Any] | None]:
        is_leased, params = super().request_finished(request, block_ids)
        if self.moved is not None and (request.kv_transfer_params or {}).get(MOVES_AWAY):
            self.moved.ended(request.request_id, block_ids, is_leased=is_leased)
        return is_leased, params

    def update_connector_output(self, connector_output: Any) -> None:
        super().update_connector_output(connector_output)
        if self.moved is not None:
            self.moved.sent(connector_output.finished_sending or ())

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        if self.moved is not None:
            self.moved.put_first()  # the request will take blocks
        params = request.kv_transfer_params or {}
        num_covered = params.get(COVERED)
        if num_covered is None or not params.get("do_remote_prefill"):
            matched: tuple[int, bool] = super().get_num_new_matched_tokens(request, num_computed_tokens)
            return matched
        num_missing = self._get_remote_prefill_token_count(num_covered) - num_computed_tokens
        return (num_missing, True) if num_missing > 0 else (0, False)
