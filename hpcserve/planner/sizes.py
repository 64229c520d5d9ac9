"""How many workers are asked for and given back: what was needed for a few intervals is asked for, and what was not
needed for long is given back. Jobs that wait in a queue count as asked for."""

from __future__ import annotations

from collections import deque
from itertools import islice

from hpcserve.config.models import PoolsConfig
from hpcserve.config.planning_models import PlannerConfig
from hpcserve.planner.decisions import Need, Resize
from hpcserve.planner.observation import Observation, Sight
from hpcserve.planner.roles import idlest_first
from hpcserve.types import Role, WorkerId


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
        self._began_at: float | None = None
        self._active_at: float | None = None

    def take(self, need: Need, seen: Observation) -> tuple[Resize | None, str]:
        """Return the change to make now, and, if none is due yet, in words the one that the present need calls for."""
        if self._is_fixed:
            return None, ""
        self._note(need.total, seen)
        num, (target, reason) = seen.num_wanted, self._target(need, seen)
        if target != num:
            return resized(target, need, seen, reason), ""
        wish = max(self._least_awake, min(need.total, self._most))
        if wish == num or self._is_asleep(seen):
            return None, ""
        return None, f"{num} -> {wish} workers, if it stays so: {_why(need, seen)}"

    def _note(self, total: int, seen: Observation) -> None:
        now = seen.now
        self._began_at = now if self._began_at is None else self._began_at
        if self._active_at is None or not seen.is_quiet:
            self._active_at = now
        self._needs.append((now, total))
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
        lasting = min(total for _, total in islice(reversed(self._needs), self._config.num_intervals))
        if len(self._needs) >= self._config.num_intervals and lasting > num:
            return min(lasting, max(self._most, num)), _why(need, seen)
        keep_s = self._keep_s(seen)
        enough = max(self._least_awake, max(total for _, total in self._needs))
        if enough < num and seen.now - self._began_at >= keep_s:
            return enough, f"for {keep_s:.0f} s {enough} would have been enough"
        return num, ""

    def _keep_s(self, seen: Observation) -> float:
        """Return for how long a worker is kept that is not needed: what takes long to come back is kept for longer."""
        return max(self._config.shrink_s, min(seen.wait_s or 0.0, 12 * self._config.shrink_s))

    def _is_asleep(self, seen: Observation) -> bool:
        return seen.num_wanted == 0


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
    return Resize(sizes=sizes, num_before=seen.num_wanted, leaving=tuple(leaving), reason=reason)


def _neediest(sizes: dict[str, int], workers: list[Sight], need: Need) -> str:
    """Return the pool whose role has the fewest workers for what it needs."""

    def strain(pool: str) -> float:
        return _need_of(Role(pool), need) / max(0.5, sum(each.role == pool for each in workers))

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
