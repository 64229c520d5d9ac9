"""Which worker should have a unit of offline requests, and what units are on whom. Pure: no Dask, no clock.

Offline work is counted apart from the router's book: online requests must not see it as work that is before them, for
it is not. A unit goes where it ends soonest: what is to be computed there, added to the offline work that is there.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from hpcserve.comm.protocol import UnitDemand
from hpcserve.types import BlockHash, WorkerId

_DECODE_WEIGHT = 4.0  # an output token costs several of a prompt: prompts are computed in passes of thousands
_NUM_REMEMBERED = 8192  # blocks of units that were placed lately


@dataclass(frozen=True, slots=True)
class _Placed:
    worker: WorkerId
    work: float  # tokens, as weighed


class UnitBook:
    """Units by key."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._placed: dict[str, _Placed] = {}
        self._work: dict[WorkerId, float] = {}
        self._lately: OrderedDict[BlockHash, WorkerId] = OrderedDict()  # who was given it last: events come later

    def place(
        self, key: str, demand: UnitDemand, candidates: Collection[WorkerId], overlaps: Mapping[WorkerId, int]
    ) -> WorkerId | None:
        """Choose one of `candidates`, book the unit on it and return it; None if there are none.

        `overlaps` are the leading blocks of the demand's that workers hold. A unit that is placed already is released.
        """
        self.release(key)
        if not candidates:
            return None
        lately = self._given_lately(demand.block_hashes)
        costs = {
            worker: self._cost(demand, max(overlaps.get(worker, 0), lately.get(worker, 0))) for worker in candidates
        }
        worker = min(candidates, key=lambda each: self._work.get(each, 0.0) + costs[each])
        self._placed[key] = _Placed(worker, costs[worker])
        self._work[worker] = self._work.get(worker, 0.0) + costs[worker]
        self._remember(demand.block_hashes, worker)
        return worker

    def release(self, key: str) -> None:
        """The unit has ended, or has to be placed anew. Unknown ones are ignored."""
        placed = self._placed.pop(key, None)
        if placed is None:
            return
        left = self._work[placed.worker] - placed.work
        if left > 0:
            self._work[placed.worker] = left
        else:
            del self._work[placed.worker]

    def worker_of(self, key: str) -> WorkerId | None:
        """Return where a unit was placed."""
        placed = self._placed.get(key)
        return None if placed is None else placed.worker

    def keys_on(self, worker: WorkerId) -> list[str]:
        """Return the units that are placed on a worker."""
        return [key for key, placed in self._placed.items() if placed.worker == worker]

    def work(self) -> dict[WorkerId, float]:
        """Return the offline work of each worker that has any, in tokens of a prompt."""
        return dict(self._work)

    def __len__(self) -> int:
        """Return how many units are placed."""
        return len(self._placed)

    def _cost(self, demand: UnitDemand, num_held: int) -> float:
        """Return the work of a unit, where `num_held` leading blocks are cached: shared tokens are computed once."""
        own = demand.num_tokens - demand.num_requests * demand.num_shared_tokens
        shared = max(0, demand.num_shared_tokens - num_held * self._block_size)
        output = 0.0 if demand.stage == "prefill" else _DECODE_WEIGHT * demand.num_output_tokens
        prompts = 0 if demand.stage == "decode" else own + shared
        return max(1.0, prompts + output)

    def _given_lately(self, hashes: list[BlockHash]) -> dict[WorkerId, int]:
        found: dict[WorkerId, int] = {}
        for depth, block in enumerate(hashes, 1):
            worker = self._lately.get(block)
            if worker is None:
                break
            found[worker] = depth
        return found

    def _remember(self, hashes: list[BlockHash], worker: WorkerId) -> None:
        for block in hashes:
            self._lately[block] = worker
            self._lately.move_to_end(block)
        while len(self._lately) > _NUM_REMEMBERED:
            self._lately.popitem(last=False)
