"""The scheduler's half of the transport connector: who pulls what from whom, and whose blocks are kept for a peer.

It gives orders and moves nothing. Requests are vLLM's, of which only attributes are used; it imports no vLLM.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from hpcserve.engine.vllm.moved import MovedBlocks
from hpcserve.engine.vllm.translate import COVERED, MOVES_AWAY
from hpcserve.engine.vllm.transport_orders import (
    NUM_LEASES,
    End,
    Lease,
    Orders,
    Pull,
    Source,
    make_params,
    read_params,
)
from hpcserve.kv.transport import TransportKind

logger = logging.getLogger(__name__)

_ENDED_WELL = ("FINISHED_LENGTH_CAPPED", "FINISHED_STOPPED")


class TransportScheduler:
    """One engine's. `ends` and `moved` are set once vLLM has told them."""

    def __init__(
        self,
        transport: TransportKind,
        block_size: int,
        *,
        keep_every_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`keep_every_s` is how often sources hear that a request still waits for their blocks."""
        self.ends: Mapping[int, End] = {}
        self.moved: MovedBlocks | None = None
        self._transport = transport
        self._block_size = block_size
        self._keep_every_s = keep_every_s
        self._clock = clock
        self._orders = Orders()
        self._slots = list(range(NUM_LEASES - 1, -1, -1))
        self._leases: dict[str, Lease] = {}  # by request, from its first step until its blocks are free
        self._wanted: dict[str, Source] = {}  # by request, from its arrival until it has its blocks
        self._pulling: set[str] = set()
        self._kept_at = clock()

    def on_new_request(self, request: Any) -> None:
        """Read the handle of a request; one that cannot be used is said aloud, and the prompt computed."""
        params = request.kv_transfer_params or {}
        if not params.get("do_remote_prefill"):
            return
        try:
            self._wanted[request.request_id] = self._read(params)
        except ValueError as err:
            logger.warning("request %s: %s; its prompt is computed", request.request_id, err)
            params["do_remote_prefill"] = False

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        """Return how many tokens can be pulled beyond those that are here, and whether that takes steps."""
        if self.moved is not None:
            self.moved.put_first()  # the request will take blocks
        num_missing = self._num_covered(request) - num_computed_tokens
        return (num_missing, True) if num_missing > 0 else (0, False)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Order the pull of a request that has room for it now, and lease what others will pull from it."""
        params = request.kv_transfer_params or {}
        if params.get("do_remote_decode"):
            self._lease(request.request_id)
        source = self._wanted.get(request.request_id)
        if source is None or not params.get("do_remote_prefill"):
            return
        if num_external_tokens:
            covered = self._num_covered(request)
            first = (covered - num_external_tokens) // self._block_size
            last = -(-covered // self._block_size)
            local = blocks.get_block_ids()[0][first:last]
            self._orders.pulls.append(Pull(request.request_id, source, source.blocks[first:last], local))
            self._pulling.add(request.request_id)
        else:
            self._let_go(request.request_id)
        params["do_remote_prefill"] = False  # a handle is good for one pull

    def build_orders(self) -> Orders:
        """Return what is to be done after this step; begins anew."""
        if self._wanted and self._clock() - self._kept_at > self._keep_every_s:
            self._orders.kept = list(self._wanted.values())
            self._kept_at = self._clock()
        orders, self._orders = self._orders, Orders()
        return orders

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """Return whether the blocks of a request are kept for a peer, and the parameters of the handle to them."""
        params = request.kv_transfer_params or {}
        if request.request_id in self._pulling:
            self._orders.cancelled.append(request.request_id)
        else:
            self._let_go(request.request_id)
        lease = self._leases.get(request.request_id)
        if lease is not None and (request.status.name not in _ENDED_WELL or not block_ids):
            del self._leases[request.request_id]
            self._orders.dropped.append(lease)
            self._slots.append(lease.slot)
            lease = None
        if lease is not None:
            self._orders.sent.append(request.request_id)
        if self.moved is not None and params.get(MOVES_AWAY):
            self.moved.ended(request.request_id, [block_ids], is_leased=lease is not None)
        if lease is None:
            return False, None
        return True, make_params(self._transport, lease, block_ids, self.ends)

    def update(self, finished_sending: Iterable[str], finished_recving: Iterable[str]) -> None:
        """Hear of leases that are over, and of pulls, whether they went well or not."""
        for request_id in finished_recving:
            self._pulling.discard(request_id)
            self._wanted.pop(request_id, None)
        sent = list(finished_sending)
        for request_id in sent:
            self._slots.append(self._leases.pop(request_id).slot)
        if self.moved is not None:
            self.moved.sent(sent)

    def _read(self, params: Mapping[str, Any]) -> Source:
        source = read_params(params)
        if len(source.ends) != len(self.ends):
            raise ValueError(f"its KV is split over {len(source.ends)} GPUs, ours over {len(self.ends)}")
        if why := self.ends[0].layout.why_unlike(source.layout):
            raise ValueError(why)
        return source

    def _num_covered(self, request: Any) -> int:
        params, source = request.kv_transfer_params or {}, self._wanted.get(request.request_id)
        if source is None or not params.get("do_remote_prefill"):
            return 0
        num_prompt = int(request.num_prompt_tokens)
        covered = int(params.get(COVERED, num_prompt))
        return min(covered, num_prompt, len(source.blocks) * self._block_size)

    def _lease(self, request_id: str) -> None:
        if request_id in self._leases:  # it was preempted
            return
        if not self._slots:
            logger.warning("request %s: %d handles wait to be fetched; it gets none", request_id, NUM_LEASES)
            return
        lease = Lease(self._slots.pop(), secrets.randbits(62) + 1)
        self._leases[request_id] = self._orders.granted[request_id] = lease

    def _let_go(self, request_id: str) -> None:
        source = self._wanted.pop(request_id, None)
        if source is not None:
            self._orders.unwanted.append(source)
