"""Requests that wait for a worker: who is next, how many may wait, and for how long. It knows no workers.

First come those that were under way and lost their worker, then the classes of priority, lower numbers first. Within a
class tenants take turns so that each is given the same time of computing (fair queueing: whoever was given least while
others waited too is next). Of one tenant's the next is whoever has `arrival + PATIENCE * work` lowest: a short prompt
overtakes a long one, but none that has waited longer than `PATIENCE` times what the two differ by; with `order: fcfs`
it is whoever came first.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heapify, heapreplace

from hpcserve.config.models import QueueConfig
from hpcserve.errors import Overloaded, RateLimited
from hpcserve.types import RequestId, RouteRequest

PATIENCE = 20.0
_LEAST_RETRY_S = 1.0
_MOST_RETRY_S = 60.0

_Class = tuple[bool, int]


@dataclass(slots=True, eq=False)
class Waiting:
    """One request."""

    request: RouteRequest
    since: float  # Unix time
    work_ms: float  # to compute its prompt, as predicted when it came
    due: tuple[float, int]  # orders a tenant's; the number tells equals apart
    needs_prefill: bool = False  # when it was last looked at, it was for a prefill worker, and none was free

    @property
    def tenant(self) -> str:
        """Whose share it is counted for."""
        return self.request.caller.tenant

    @property
    def rank(self) -> _Class:
        """Its class: what was under way goes first."""
        return (not self.request.exclude, self.request.priority)


class WaitingRoom:
    """Everybody who waits. Taking somebody out, for whatever reason, is `remove`."""

    def __init__(self, config: QueueConfig, *, is_fcfs: bool = False) -> None:
        """`is_fcfs` overrules the configured order."""
        self._config = config
        self._patience = 0.0 if is_fcfs or config.order == "fcfs" else PATIENCE
        self._by_id: dict[RequestId, Waiting] = {}
        self._classes: dict[_Class, dict[str, list[Waiting]]] = {}  # by tenant, in the order they are due
        self._given_ms: dict[str, float] = {}  # to each tenant that waits, and to others since somebody began to wait
        self._num_of: dict[str, int] = {}  # waiting, by tenant
        self._work_ms = 0.0
        self._num_arrived = 0

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def work_ms(self) -> float:
        """To compute the prompts of all who wait; 0 where nobody was meant to."""
        return self._work_ms

    def __iter__(self) -> Iterator[Waiting]:
        return iter(list(self._by_id.values()))

    def check(self, request: RouteRequest, num_workers: int) -> None:
        """Raise `Overloaded` or `RateLimited` if the request may not wait too. Those under way always may."""
        if request.exclude:
            return
        retry_s = min(max(self._work_ms / 1000 / max(num_workers, 1), _LEAST_RETRY_S), _MOST_RETRY_S)
        if len(self) >= self._config.max_requests:
            raise Overloaded(
                f"{len(self)} requests wait for a worker, which is all that router.queue.max_requests allows; "
                f"try again in {retry_s:.0f} s",
                retry_after_s=retry_s,
            )
        most, waiting = self._config.max_requests_per_tenant, self._num_of.get(request.caller.tenant, 0)
        if most is not None and waiting >= most:
            raise RateLimited(
                f"{waiting} requests of yours wait, which is all that router.queue.max_requests_per_tenant allows; "
                f"try again in {retry_s:.0f} s",
                retry_after_s=retry_s,
            )

    def add(self, request: RouteRequest, work_ms: float, now: float) -> None:
        """Let a request wait; one that does already begins anew."""
        self.remove(request.request_id)
        self._num_arrived += 1
        new = Waiting(request, now, work_ms, (now * 1000 + self._patience * work_ms, self._num_arrived))
        if new.tenant not in self._num_of:
            least = min((self._given_ms.get(tenant, 0.0) for tenant in self._num_of), default=0.0)
            self._given_ms[new.tenant] = max(self._given_ms.get(new.tenant, 0.0), least)
        self._num_of[new.tenant] = self._num_of.get(new.tenant, 0) + 1
        self._by_id[request.request_id] = new
        insort(self._classes.setdefault(new.rank, {}).setdefault(new.tenant, []), new, key=_due)
        self._work_ms += work_ms

    def remove(self, request_id: RequestId, *, is_placed: bool = False) -> None:
        """Let a request wait no more; if it is placed, its work counts for its tenant. Unknown ids are ignored."""
        gone = self._by_id.pop(request_id, None)
        if gone is None:
            return
        tenants = self._classes[gone.rank]
        queue = tenants[gone.tenant]
        del queue[bisect_left(queue, gone.due, key=_due)]
        if not queue:
            del tenants[gone.tenant]
            if not tenants:
                del self._classes[gone.rank]
        self._num_of[gone.tenant] -= 1
        if not self._num_of[gone.tenant]:
            del self._num_of[gone.tenant]
        self._work_ms -= gone.work_ms
        if is_placed:
            self._given_ms[gone.tenant] += gone.work_ms
        if not self._by_id:
            self._given_ms.clear()  # nobody is behind anybody
            self._work_ms = 0.0

    def next(self, count: int) -> list[Waiting]:
        """Return the `count` that are next, in order; fewer if the first class has not so many. Nobody is taken out."""
        return self._next_of(self._classes[min(self._classes)], count) if self._classes else []

    def expired(self, now: float) -> list[RequestId]:
        """Return those that have waited for too long."""
        since = now - self._config.max_wait_s
        return [request_id for request_id, waiting in self._by_id.items() if waiting.since < since]

    def _next_of(self, tenants: dict[str, list[Waiting]], count: int) -> list[Waiting]:
        """Return the next of one class: who was given least goes first, and counts as given what it goes with."""
        if len(tenants) == 1:
            return next(iter(tenants.values()))[:count]
        chosen: list[Waiting] = []
        turns = [(self._given_ms[tenant], tenant, 0) for tenant in tenants]
        heapify(turns)
        while len(chosen) < count and turns[0][2] >= 0:
            given_ms, tenant, index = turns[0]
            queue = tenants[tenant]
            chosen.append(queue[index])
            is_last = index + 1 == len(queue)
            given_ms = float("inf") if is_last else given_ms + queue[index].work_ms
            heapreplace(turns, (given_ms, tenant, -1 if is_last else index + 1))
        return chosen


def _due(waiting: Waiting) -> tuple[float, int]:
    return waiting.due
