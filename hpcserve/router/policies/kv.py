"""Policy `kv`: where the request, and those that are there already, lose the least time. The default.

    cost = first + HARM_PREFILL * queued * own + HARM_STALL * running * own + HARM_GROWTH * growth + full

All in milliseconds. `first` is the predicted time to the first token: the prompt work queued ahead, the request's own,
and the decode steps that are mixed in where others decode; or, where a prefill worker computes it, the time until its
KV is here. `own` is what the worker's cache lacks, pulled from another worker where that is faster than computing; it
delays those whose prompts wait in the same pass (`queued`), and stalls those that decode (`running`). `growth` is how
much longer decoding takes, the request's own and the others', for the KV blocks that it adds; `full` keeps requests
away from a cache that has no room for them. What the weights were tuned on, and what did not work, is in
docs/routing.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from hpcserve.router.policies.base import Candidate, Turns
from hpcserve.router.rates import Rates
from hpcserve.router.timing import PASS_TOKENS, decode_steps_ms
from hpcserve.types import RouteRequest, WorkerId

HARM_PREFILL = 0.5
HARM_STALL = 0.1
HARM_GROWTH = 0.1
OUTPUT_TOKENS = 340  # taken for the length of an answer, which nobody knows: the mean of Mooncake's conversations
STEP_MS_OF_FULL_CACHE = 54.0  # what a decode step takes longer with a full cache than with an empty one
ROOM = 0.95  # share of the blocks that prompts may fill: the rest is for what the requests generate
FULL_MS = 20_000.0  # for a whole cache beyond that: about the life of a request


class Kv:
    """The lowest cost; of equals the lowest load, then in turn."""

    def __init__(self, rates: Rates) -> None:
        self._rates = rates
        self.turns = Turns()

    def choose(self, candidates: Sequence[Candidate], request: RouteRequest) -> WorkerId:
        """Return the candidate of the lowest cost."""
        return self.turns.lowest(candidates, lambda c: (self.cost_ms(c), c.load))

    def forget(self, worker: WorkerId) -> None:
        """Drop its turn."""
        self.turns.forget(worker)

    def cost_ms(self, c: Candidate) -> float:
        """Return what placing the request there costs."""
        timing = self._rates.of(c.worker)
        pull_ms, new_tokens = timing.cheapest(c.new_tokens, c.pull_tokens)
        ahead_ms = timing.prefill_ms(c.queued_tokens)
        own_ms = timing.prefill_ms(c.queued_tokens + new_tokens) - ahead_ms
        cost = c.elsewhere_ms + ahead_ms + own_ms + pull_ms + HARM_PREFILL * c.num_queued * own_ms
        if not c.capacity:
            return cost
        use, growth = c.decode_blocks / c.capacity, c.new_blocks / c.capacity
        if c.load and new_tokens:
            num_steps = 0.5 + -(-new_tokens // PASS_TOKENS)  # the rest of the running one, and one with each pass
            cost += timing.decode_scale * num_steps * decode_steps_ms(1, min(use, 1.0), min(use, 1.0) ** 2)
        slower_ms = timing.decode_scale * STEP_MS_OF_FULL_CACHE * OUTPUT_TOKENS * (use + c.load * growth / 2)
        return cost + HARM_STALL * c.load * own_ms + HARM_GROWTH * slower_ms + max(0.0, use - ROOM) * FULL_MS
