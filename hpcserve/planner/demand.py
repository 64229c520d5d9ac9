"""How many workers the load needs: prompts by queueing theory, decoding by the KV that it fills.

Prompts: arrivals that offer `a` workers' worth of computing wait, with `n` workers, longer than `t` with a probability
of C(n, a) exp(-(n - a) t / s), C being A. K. Erlang's second formula. `s` is half the ratio of the second moment of the
computing times to the first: their mean where they are exponential, and longer the more they differ, as in the formula
of Pollaczek and Khinchine. What waits already is more work, to be done within a while.
"""

from __future__ import annotations

from math import ceil, exp

from hpcserve.config.planning_models import PlannerConfig
from hpcserve.planner.decisions import Need
from hpcserve.planner.observation import Observation, kv_of
from hpcserve.types import Role

MOST_LATE = 0.1
"""Of requests, and of tokens: what the objectives leave."""
MEMORY_S = 20.0
"""Arrivals of so long ago count for a third."""
DRAIN_S = 10.0
"""What waits is to be computed within."""
MOST_KV = 0.8
"""Share of a decode worker's KV that is to be in use: contexts grow, and a full cache preempts."""

_TTFT_SHARE = 0.8  # of the objective is for waiting and computing; the rest is for the way there and back
_LEAST_WAIT_SHARE = 0.2  # of the objective is always for waiting: long prompts are late whatever is done
_MIXED_STEP = 1.25  # of a prompt's own time that it takes a worker that also decodes
_MOST_WORKERS = 4096


class Demand:
    """Remembers the last arrivals. One owner, who shows it every interval once."""

    def __init__(self, config: PlannerConfig) -> None:
        self._config = config
        self._seconds = 0.0
        self._num = 0.0
        self._work_s = 0.0
        self._squares = 0.0
        self._kv = 0.0

    def take(self, seen: Observation, *, is_split: bool) -> Need:
        """Return what is needed after an interval more; `is_split`: prefill and decode have workers of their own."""
        self._remember(seen, is_split=is_split)
        work_s = self._work_s * (1.0 if is_split else _MIXED_STEP)
        offered = work_s / self._seconds if self._seconds else 0.0
        prefill = self._prefill(seen, offered)
        decode = self._decode(seen, is_split=is_split)
        return Need(
            prefill=prefill,
            decode=decode,
            total=prefill + decode if is_split else max(prefill, decode),
            offered=round(offered, 3),
            kv=round(self._kv, 3),
            backlog_s=round(seen.backlog_ms / 1000, 3),
        )

    def _remember(self, seen: Observation, *, is_split: bool) -> None:
        kept = exp(-seen.interval_s / MEMORY_S)
        self._seconds = self._seconds * kept + seen.interval_s
        self._num = self._num * kept + seen.num_arrived
        self._work_s = self._work_s * kept + seen.arrived_ms / 1000
        self._squares = self._squares * kept + seen.arrived_squares / 1e6
        kv = kv_of(seen.of(Role.DECODE if is_split else Role.BOTH, ready=True))
        self._kv = max(kv, self._kv * kept + kv * (1 - kept))  # what rises is believed at once

    def _prefill(self, seen: Observation, offered: float) -> int:
        offered += seen.backlog_ms / 1000 / DRAIN_S
        mean_s = self._work_s / self._num if self._num > 0 else 0.0
        stretched_s = self._squares / (2 * self._work_s) if self._work_s else 0.0
        ttft_s = self._config.ttft_ms / 1000
        wait_s = max(_LEAST_WAIT_SHARE * ttft_s, _TTFT_SHARE * ttft_s - mean_s)
        return workers_for(offered, stretched_s, wait_s)

    def _decode(self, seen: Observation, *, is_split: bool) -> int:
        most_kv = max(0.01, min(MOST_KV, seen.most_kv))
        by_kv = ceil(self._kv / most_kv - 1e-9)
        workers = seen.of(Role.DECODE if is_split else Role.BOTH, ready=True)
        is_crowded = sum(each.num_requests for each in workers) >= 2 * len(workers) > 0
        is_late = seen.late_itl > MOST_LATE and is_crowded  # else more workers would be no help
        return max(1, by_kv, len(workers) + 1 if is_late else 0)


def workers_for(offered: float, stretched_s: float, wait_s: float) -> int:
    """Return the fewest workers with which at most `MOST_LATE` of the prompts wait for longer than `wait_s`."""
    blocked, num = 1.0, 0
    while num < _MOST_WORKERS:
        num += 1
        blocked = offered * blocked / (num + offered * blocked)  # Erlang's first formula, by recursion
        if num <= offered:
            continue
        waits = num * blocked / (num - offered * (1 - blocked))
        if not stretched_s or waits * exp(-(num - offered) * wait_s / stretched_s) <= MOST_LATE:
            break
    return num
