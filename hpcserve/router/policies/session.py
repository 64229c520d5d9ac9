"""Policy `session`: the requests of a session go to one worker, whose cache holds their history. No index is needed.

Which worker that is follows from the names of both (rendezvous hashing: each worker draws a number for the session, the
highest wins), so that nothing is remembered, every router agrees, and a lost worker moves only its own sessions. A
worker that has much more to do than the others is passed over for the session's next one, as in consistent hashing with
bounded loads (Mirrokni, Thorup and Zadimoghaddam, 2016). Requests of no session are spread by `power_of_two`.
"""

from __future__ import annotations

from collections.abc import Sequence

from xxhash import xxh3_64_intdigest

from hpcserve.router.policies.base import Candidate
from hpcserve.router.policies.power_of_two import PowerOfTwo
from hpcserve.types import RouteRequest, WorkerId

BOUND = 1.25
"""A worker is passed over with more than so many times the mean load, and one request."""


class Session:
    """The session's worker, unless that is overloaded."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._others = PowerOfTwo(seed)

    def choose(self, candidates: Sequence[Candidate], request: RouteRequest) -> WorkerId:
        """Return the first of the session's workers that is not overloaded."""
        caller = request.caller
        if caller.session is None:
            return self._others.choose(candidates, request)
        bound = BOUND * sum(c.load for c in candidates) / len(candidates)
        fit = [c for c in candidates if c.load <= bound + _one(c, request)] or candidates
        session = _number(f"{self._seed}\0{caller.tenant}\0{caller.session}", 0)
        return max(fit, key=lambda c: (_number(c.worker, session), c.worker)).worker

    def forget(self, worker: WorkerId) -> None:
        """Drop what the others' policy remembers of it."""
        self._others.forget(worker)


def _number(name: str, seed: int) -> int:
    return xxh3_64_intdigest(name.encode(errors="surrogatepass"), seed)


def _one(candidate: Candidate, request: RouteRequest) -> int:
    """Return what one request is in the unit of the candidate's load: prefill workers count tokens."""
    return 1 if candidate.decode_blocks else request.num_tokens
