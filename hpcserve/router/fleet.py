"""Who may take a request: membership, states, roles, exclusions and walltimes. It does not choose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hpcserve.errors import Unavailable
from hpcserve.types import Role, WorkerId, WorkerInfo, WorkerState

ENDING_S = 30.0
"""A worker whose job ends sooner than this gets new requests only if there is nobody else."""


class Fleet:
    """The workers that the router was told of."""

    def __init__(self) -> None:
        self._workers: dict[WorkerId, WorkerInfo] = {}
        self._decoders: list[WorkerInfo] = []  # READY
        self._prefillers: list[WorkerInfo] = []  # READY
        self.has_ends = False  # whether any READY worker's job ends at a known time
        self.may_be_empty = False  # whether requests may wait for the first worker

    def update(self, info: WorkerInfo) -> None:
        """Take a worker in, or its new state."""
        self._workers[info.worker] = info
        self._sort()

    def remove(self, worker: WorkerId) -> None:
        """Forget a worker."""
        if self._workers.pop(worker, None) is not None:
            self._sort()

    def get(self, worker: WorkerId) -> WorkerInfo | None:
        """Return what is known of a worker."""
        return self._workers.get(worker)

    def __contains__(self, worker: WorkerId) -> bool:
        return worker in self._workers

    def __iter__(self) -> Iterator[WorkerId]:
        return iter(self._workers)

    def decoders(self, exclude: Sequence[WorkerId], now: float) -> list[WorkerInfo]:
        """Return READY workers that may decode; excluded or ending ones only if there are no others.

        Raises `Unavailable` if none is READY.
        """
        if not self._decoders:
            raise Unavailable(self._nobody())
        fresh = _without(self._decoders, exclude)
        return _lasting(fresh, now) or fresh or self._decoders

    def num_decoders(self, now: float) -> int:
        """Return how many READY workers may decode. Raises `Unavailable` if there are none and must be some."""
        return 0 if self.may_be_empty and not self._decoders else len(self.decoders((), now))

    def prefillers(self, exclude: Sequence[WorkerId], now: float) -> list[WorkerInfo]:
        """Return READY workers that may prefill for others, without the excluded and the ending; may be empty."""
        return _lasting(_without(self._prefillers, exclude), now)

    def _sort(self) -> None:
        ready = [info for info in self._workers.values() if info.state is WorkerState.READY]
        self.has_ends = any(info.ends_at is not None for info in ready)
        self._decoders = [info for info in ready if info.role.decodes]
        self._prefillers = [info for info in ready if info.role is Role.PREFILL] or [
            info for info in ready if info.role is Role.BOTH
        ]

    def _nobody(self) -> str:
        decoders = [info for info in self._workers.values() if info.role.decodes]
        if not decoders:
            return "no worker that can decode has joined yet; try again when `hpcserve status` shows one READY"
        kind = "decode worker" if any(info.role is Role.DECODE for info in decoders) else "worker"
        return f"no {kind} is READY (0 of {len(decoders)}); see `hpcserve status`"


def _without(workers: list[WorkerInfo], exclude: Sequence[WorkerId]) -> list[WorkerInfo]:
    return [info for info in workers if info.worker not in exclude] if exclude else workers


def _lasting(workers: list[WorkerInfo], now: float) -> list[WorkerInfo]:
    return [info for info in workers if info.ends_at is None or info.ends_at > now + ENDING_S]
