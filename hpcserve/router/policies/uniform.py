"""Policy `random`: blind, but the same sequence of choices for the same seed."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random as Generator

from hpcserve.router.policies.base import Candidate
from hpcserve.types import RouteRequest, WorkerId


class Random:
    """Every candidate is equally likely."""

    def __init__(self, seed: int) -> None:
        self._generator = Generator(seed)  # noqa: S311  # a reproducible choice, not a secret

    def choose(self, candidates: Sequence[Candidate], request: RouteRequest) -> WorkerId:
        """Return any candidate."""
        return self._generator.choice(candidates).worker

    def forget(self, worker: WorkerId) -> None:
        """Nothing is remembered."""
