"""What policies see, and the turn-taking that all of them break ties with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from hpcserve.types import RouteRequest, WorkerId


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """One worker that may take a request, and what would be on it with the request placed there.

    A prefill worker has no decode blocks; a decode worker whose KV comes from elsewhere has no prefill tokens.
    """

    worker: WorkerId
    load: int  # what is there already: requests of a decoding worker, queued tokens of a prefill worker
    num_queued: int = 0  # requests whose prompts wait here
    queued_tokens: int = 0  # of those prompts, to compute here
    new_tokens: int = 0  # of this request, to compute here unless some are pulled
    pull_tokens: int = 0  # of those, what another worker holds and this one may pull
    elsewhere_ms: float = 0.0  # until a prefill worker has computed the prompt and its KV has moved here; 0 if not done
    decode_blocks: int = 0  # KV blocks active here, and added by this request
    new_blocks: int = 0  # of those, added by this request
    capacity: int = 0  # KV blocks of a decoding worker; 0 where they are not known


class Policy(Protocol):
    """Chooses. May remember earlier choices; never looks at a clock."""

    def choose(self, candidates: Sequence[Candidate], request: RouteRequest) -> WorkerId:
        """Return one of `candidates`, which are never empty. The same calls in the same order give the same answers."""
        ...

    def forget(self, worker: WorkerId) -> None:
        """`worker` will not come again."""
        ...


class Turns:
    """Remembers who was chosen when. Of equals, whoever has waited longest is next; newcomers come first."""

    def __init__(self) -> None:
        self._last: dict[WorkerId, int] = {}
        self._turn = 0

    def lowest(self, candidates: Sequence[Candidate], key: Callable[[Candidate], object]) -> WorkerId:
        """Return the candidate of the lowest `key`, and count it as its turn."""
        last = self._last
        chosen = min(candidates, key=lambda c: (key(c), last.get(c.worker, 0))).worker
        self.take(chosen)
        return chosen

    def take(self, worker: WorkerId) -> None:
        """Count a turn of `worker`."""
        self._turn += 1
        self._last[worker] = self._turn

    def last(self, worker: WorkerId) -> int:
        """Return the number of the last turn of `worker`; 0 if it had none."""
        return self._last.get(worker, 0)

    def forget(self, worker: WorkerId) -> None:
        """Drop what is remembered of `worker`."""
        self._last.pop(worker, None)
