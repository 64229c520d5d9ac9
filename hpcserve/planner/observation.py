"""What the planner looks at: one interval of a deployment's life. Values only; `observer.py` gathers them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from hpcserve.types import Role, WorkerId


class Sight(msgspec.Struct, frozen=True, kw_only=True):
    """One worker. It is "coming" from its submission until it is READY."""

    worker: WorkerId
    pool: str
    role: Role
    state: Literal["coming", "ready"]
    num_requests: int = 0  # placed there, or running
    queued_ms: float = 0.0  # to compute the prompts that are placed there
    kv_usage: float = 0.0  # share of its KV blocks in use, 0 to 1


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """An interval, and the workers as they are at its end. Workers that leave are not among them."""

    now: float  # s
    interval_s: float
    sizes: dict[str, int]  # workers that are wanted, by pool, whether they are there or not
    workers: tuple[Sight, ...] = ()
    num_arrived: int = 0  # requests, without those of batches
    arrived_ms: float = 0.0  # to compute their prompts, as predicted when they came
    arrived_squares: float = 0.0  # of those, in ms^2, added up
    num_waiting: int = 0  # requests for which no worker was chosen yet, those of batches too
    waiting_ms: float = 0.0  # to compute their prompts
    wants_room: bool = False  # some of them wait for room on a decode worker, while a prefill worker is free
    gap_ms: float | None = None  # mean time between two tokens of a request, as engines measured; None: no tokens
    decode_scale: float = 1.0  # time of the workers' decode steps over the published one; the median
    ttft_p90_ms: float | None = None  # None: no token came
    itl_p90_ms: float | None = None
    late_ttft: float = 0.0  # share of first tokens that certainly came later than `planner.ttft_ms`
    late_itl: float = 0.0  # the same of the gaps between tokens
    wait_s: float | None = None  # from submitting a job until its worker is READY; None: not known

    def of(self, role: Role, *, ready: bool = False) -> list[Sight]:
        """Return the workers of a role; with `ready` only those that are READY."""
        return [each for each in self.workers if each.role is role and (each.state == "ready" or not ready)]

    @property
    def num_wanted(self) -> int:
        """Workers of all pools that are there or asked for."""
        return sum(self.sizes.values())

    @property
    def num_coming(self) -> int:
        """Of those, the ones that are not READY."""
        return max(0, self.num_wanted - sum(each.state == "ready" for each in self.workers))

    @property
    def backlog_ms(self) -> float:
        """To compute all prompts that wait to be computed, be it for a worker or on one."""
        return (0.0 if self.wants_room else self.waiting_ms) + sum(each.queued_ms for each in self.workers)

    @property
    def is_quiet(self) -> bool:
        """Whether nobody asked for anything and nothing runs."""
        return not (self.num_arrived or self.num_waiting or any(each.num_requests for each in self.workers))


def kv_of(workers: Iterable[Sight]) -> float:
    """Return the KV in use, in caches: 1.5 are one that is full and one that is half full."""
    return sum(each.kv_usage for each in workers)
