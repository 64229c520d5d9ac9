"""How many workers the load needs: prompts by queueing theory, decoding by the KV that it fills (`decoding.py`).

Prompts: arrivals that offer `a` workers' worth of computing wait, with `n` workers, longer than `t` with a probability
of C(n, a) exp(-(n - a) t / s), C being A. K. Erlang's second formula. `s` is half the ratio of the second moment of the
computing times to the first: their mean where they are exponential, and longer the more they differ, as in the formula
of Pollaczek and Khinchine. What waits already is more work, to be done within a while.
"""

from __future__ import annotations

from collections import deque
from math import exp, floor, inf

import msgspec

from hpcserve.config.planning_models import PlannerConfig
from hpcserve.planner.decisions import Need
from hpcserve.planner.decoding import workers_to_decode
from hpcserve.planner.observation import Observation, Sight, kv_of
from hpcserve.types import Role

MOST_LATE = 0.1
"""Of requests, and of tokens: what the objectives leave."""
DRAIN_S = 10.0
"""What waits is to be computed within."""

_TTFT_SHARE = 0.8  # of the objective is for waiting and computing; the rest is for the way there and back
_LEAST_WAIT_SHARE = 0.2  # of the objective is always for waiting: long prompts are late whatever is done
_MIXED_STEP = 1.25  # of a prompt's own time that it takes a worker that also decodes
_MOST_TRUST = 2  # times what the KV tells: tokens that come late for another reason would ask for workers for ever
_MOST_WORKERS = 4096


class Demand:
    """Remembers the last `planner.num_intervals`. One owner, who shows it every interval once."""

    def __init__(self, config: PlannerConfig) -> None:
        self._config = config
        self._last: deque[Observation] = deque(maxlen=config.num_intervals)

    def take(self, seen: Observation, *, is_split: bool) -> Need:
        """Return what is needed after an interval more; `is_split`: prefill and decode have workers of their own."""
        self._last.append(seen)
        need, now = self._of(list(self._last), is_split=is_split), self._of([seen], is_split=is_split)
        return msgspec.structs.replace(need, total_now=now.total)

    def _of(self, last: list[Observation], *, is_split: bool) -> Need:
        newest = last[-1]
        decoding = Role.DECODE if is_split else Role.BOTH
        work_s = sum(each.arrived_ms for each in last) / 1000
        offered = work_s / sum(each.interval_s for each in last) * (1.0 if is_split else _MIXED_STEP)
        kv = sum(kv_of(each.of(decoding, ready=True)) for each in last) / len(last)
        prefill = self._prefill(last, offered, work_s)
        workers, shared = newest.of(decoding, ready=True), 0.0 if is_split else offered
        least_decode = self._least_decode(newest, workers, kv, shared)
        decode = max(least_decode, self._decode(newest, workers, kv, shared))
        return Need(
            prefill=prefill,
            decode=decode,
            least_prefill=floor(offered) + 1,
            least_decode=least_decode,
            total=prefill + decode if is_split else max(prefill, decode),
            offered=round(offered, 3),
            kv=round(kv, 3),
            backlog_s=round(newest.backlog_ms / 1000, 3),
        )

    def _prefill(self, last: list[Observation], offered: float, work_s: float) -> int:
        num = sum(each.num_arrived for each in last)
        squares = sum(each.arrived_squares for each in last) / 1e6
        stretched_s = squares / (2 * work_s) if work_s else 0.0
        ttft_s = self._config.ttft_ms / 1000
        wait_s = max(_LEAST_WAIT_SHARE * ttft_s, _TTFT_SHARE * ttft_s - (work_s / num if num else 0.0))
        return workers_for(offered + last[-1].backlog_ms / 1000 / DRAIN_S, stretched_s, wait_s)

    def _least_decode(self, seen: Observation, workers: list[Sight], kv: float, offered: float) -> int:
        least = workers_to_decode(kv, len(workers), offered, seen.decode_scale, inf)
        return max(least, len(workers) + 1) if seen.wants_room else least

    def _decode(self, seen: Observation, workers: list[Sight], kv: float, offered: float) -> int:
        num = workers_to_decode(kv, len(workers), offered, seen.decode_scale, self._config.itl_ms)
        is_slow = seen.late_itl > MOST_LATE or (seen.gap_ms or 0.0) > self._config.itl_ms
        is_crowded = sum(each.num_requests for each in workers) >= 2 * len(workers) > 0
        if not (is_slow and is_crowded):  # alone they would not be faster
            return num
        return max(num, min(len(workers) + 1, _MOST_TRUST * num))


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
