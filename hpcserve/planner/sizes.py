"""How many workers are asked for and given back: what was needed for a few intervals is asked for, and what was not
needed for long is given back. Jobs that wait in a queue count as asked for."""

from __future__ import annotations

from collections import deque
from math import inf

from hpcserve.config.models import PoolsConfig
from hpcserve.config.planning_models import PlannerConfig
from hpcserve.planner.decisions import Need, Resize
from hpcserve.planner.observation import Observation, Sight
from hpcserve.planner.roles import idlest_first
from hpcserve.types import Role, WorkerId

_STEPS = 8
"""Workers are given back an eighth at a time, and an eighth of the time is waited in between: to see what it does."""


_USUALLY = 0.95
"""Of the time fewer workers must have been enough: a single burst is no reason to keep one for long."""


class Sizes:
    """Remembers what was needed. Shown every interval once."""

    def __init__(self, config: PlannerConfig, pools: PoolsConfig) -> None:
        num = sum(pools.sizes.values())
        self._config = config
        self._least = num if config.min_workers is None else config.min_workers
        self._most = max(self._least, num if config.max_workers is None else config.max_workers)
        self._least_awake = max(self._least, len(pools.sizes))  # a worker of each role, or none at all
        self._is_fixed = self._least == self._most == num
        self._needs: deque[tuple[float, int]] = deque()
        self._lately: deque[int] = deque(maxlen=max(2, (config.num_intervals + 1) // 2))
        self._began_at: float | None = None
        self._active_at: float | None = None
        self._shrunk_at = -inf

    def take(self, need: Need, seen: Observation) -> tuple[Resize | None, str]:
        """Return the change to make now, and, if none is due yet, in words the one that the present need calls for."""
        if self._is_fixed:
            return None, ""
        self._note(need, seen)
        num, (target, reason) = seen.num_wanted, self._target(need, seen)
        if target != num:
            return resized(target, need, seen, reason), ""
        wish = max(self._least_awake, min(need.total, self._most))
        if wish == num or self._is_asleep(seen):
            return None, ""
        return None, f"{num} -> {wish} workers, if it stays so: {_why(need, seen)}"

    def _note(self, need: Need, seen: Observation) -> None:
        now = seen.now
        self._began_at = now if self._began_at is None else self._began_at
        if self._active_at is None or not seen.is_quiet:
            self._active_at = now
        self._needs.append((now, need.total))
        self._lately.append(max(need.total, need.total_now))
        while self._needs[0][0] < now - self._keep_s(seen):
            self._needs.popleft()

    def _target(self, need: Need, seen: Observation) -> tuple[int, str]:
        assert self._active_at is not None
        assert self._began_at is not None
        num, quiet_s = seen.num_wanted, seen.now - self._active_at
        if num == 0 and not seen.is_quiet:
            return min(self._least_awake, self._most), f"{seen.num_waiting} requests wait, and there is no worker"
        if num == 0:
            return self._least, "so many are wanted at least"
        if quiet_s >= self._config.idle_s:
            return min(num, self._least), f"nobody has asked for anything for {quiet_s:.0f} s"
        lasting = min(self._lately) if len(self._lately) == self._lately.maxlen else 0
        if lasting > num:
            self._needs.append((seen.now, lasting))  # what was asked for is kept as if it had been needed
            return min(lasting, max(self._most, num)), _why(need, seen)
        keep_s = self._keep_s(seen)
        needs = sorted(total for _, total in self._needs)
        enough = max(self._least_awake, needs[int(_USUALLY * (len(needs) - 1))])
        lasts = seen.now - self._began_at >= keep_s
        if enough < num and lasts and not is_short(need, seen) and seen.now - self._shrunk_at >= keep_s / _STEPS:
            self._shrunk_at = seen.now
            return max(enough, num - max(1, num // _STEPS)), f"for {keep_s:.0f} s {enough} would have been enough"
        return num, ""

    def _keep_s(self, seen: Observation) -> float:
        """Return for how long a worker is kept that is not needed: what takes long to come back is kept for longer."""
        return max(self._config.shrink_s, min(seen.wait_s or 0.0, 12 * self._config.shrink_s))

    def _is_asleep(self, seen: Observation) -> bool:
        return seen.num_wanted == 0


def is_short(need: Need, seen: Observation) -> bool:
    """Whether a role has fewer workers than it needs, however many the other has."""
    if Role.BOTH in map(Role, seen.sizes):
        return need.total > seen.num_wanted
    return need.prefill > len(seen.of(Role.PREFILL)) or need.decode > len(seen.of(Role.DECODE))


def resized(target: int, need: Need, seen: Observation, reason: str) -> Resize:
    """Return the sizes of the pools for `target` workers, and who had better go."""
    sizes, workers = dict(seen.sizes), list(seen.workers)
    leaving: list[WorkerId] = []
    while sum(sizes.values()) < target:
        pool = _neediest(sizes, workers, need)
        sizes[pool] += 1
        workers.append(_coming(pool))
    while sum(sizes.values()) > target:
        gone = _missing(sizes, workers) or _most_dispensable(workers, need)
        sizes[gone.pool] -= 1
        if gone in workers:
            workers.remove(gone)
            leaving.append(gone.worker)
    roles = {Role(pool): sum(each.role == pool for each in workers) for pool in sizes}
    return Resize(sizes=sizes, num_before=seen.num_wanted, roles=roles, leaving=tuple(leaving), reason=reason)


def _neediest(sizes: dict[str, int], workers: list[Sight], need: Need) -> str:
    """Return the pool whose role has the fewest workers for what it needs."""

    def strain(pool: str) -> float:
        num = sum(each.role == pool for each in workers)
        return _need_of(Role(pool), need) / num if num else inf

    return max(sizes, key=strain)


def _missing(sizes: dict[str, int], workers: list[Sight]) -> Sight | None:
    """Return a worker that is wanted, but of which there is not even a job."""
    pools = (pool for pool, size in sizes.items() if size > sum(each.pool == pool for each in workers))
    return next(map(_coming, pools), None)


def _most_dispensable(workers: list[Sight], need: Need) -> Sight:
    """Return who comes yet, else the idlest; of the role that has the most workers for what it needs."""

    def strain_without(role: Role) -> float:
        return _need_of(role, need) / max(0.01, sum(each.role is role for each in workers) - 1)

    role = min({each.role for each in workers}, key=lambda role: (strain_without(role), role))
    coming = [each for each in workers if each.state == "coming"]
    mine = [each for each in coming if each.role is role] or coming
    return (mine or idlest_first(each for each in workers if each.role is role))[-1 if mine else 0]


def _need_of(role: Role, need: Need) -> int:
    return {Role.PREFILL: need.prefill, Role.DECODE: need.decode, Role.BOTH: need.total}[role]


def _coming(pool: str) -> Sight:
    return Sight(worker=WorkerId(""), pool=pool, role=Role(pool), state="coming")


def _why(need: Need, seen: Observation) -> str:
    waiting = f", {need.backlog_s:.1f} s of them wait" if need.backlog_s >= 0.1 else ""
    coming = f"; {seen.num_coming} were asked for and are not READY" if seen.num_coming else ""
    return (
        f"prompts need {need.prefill} (they keep {need.offered:.1f} computing{waiting}), "
        f"decoding {need.decode} (it fills {need.kv:.1f} caches){coming}"
    )
