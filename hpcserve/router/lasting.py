"""Which workers last for a request: it is not placed where it is predicted to outlast the worker's job. No clock.

Predicted are the prompts that queue there, the request's own, and a decode step for each token that it is likely to
generate. How many these are is learned: of 10 requests that ended, 9 generated no more. Until some have ended it is
what the request may generate at most.
"""

from __future__ import annotations

from collections import deque
from math import inf

from hpcserve.router.fleet import Fleet
from hpcserve.router.load import LoadBook
from hpcserve.router.rates import Rates
from hpcserve.router.timing import Timing, decode_steps_ms
from hpcserve.types import WorkerInfo

_QUANTILE = 0.9
_NUM_KEPT = 256
_NUM_TO_TRUST = 20
_SURE = 10.0  # times what an idle worker takes: whoever has that left need not be looked at closely
_LONG_SHARE = 0.5  # of what is left of the longest job: one worker alone would get all that nobody lasts for


class OutputLengths:
    """What requests of this deployment generated, the newest few hundred."""

    def __init__(self) -> None:
        self._seen: deque[int] = deque(maxlen=_NUM_KEPT)
        self._likely: int | None = None

    def note(self, num_tokens: int) -> None:
        """A request has ended that generated so many tokens."""
        self._seen.append(num_tokens)
        self._likely = None

    def expect(self, max_tokens: int) -> int:
        """Return how many tokens a request is likely to generate that may generate `max_tokens`."""
        if len(self._seen) < _NUM_TO_TRUST:
            return max_tokens
        if self._likely is None:
            self._likely = sorted(self._seen)[int(_QUANTILE * len(self._seen))]
        return min(max_tokens, self._likely)


class Lasting:
    """Compares predicted ends with those of jobs. What is left of a job is less by `leave_s`: by then all has moved."""

    def __init__(self, fleet: Fleet, book: LoadBook, rates: Rates, leave_s: float) -> None:
        self._fleet = fleet
        self._book = book
        self._rates = rates
        self._leave_s = leave_s
        self.lengths = OutputLengths()

    def among(self, workers: list[WorkerInfo], num_tokens: int, max_tokens: int, now: float) -> list[WorkerInfo]:
        """Return those that last for a prompt of `num_tokens` and its answer.

        If none does, those that last long, beside the others: it will be moved, but not soon. With `max_tokens` 0 only
        the prompt is computed there.
        """
        if not self._fleet.has_ends:
            return workers
        num_output = self.lengths.expect(max_tokens)
        sure_s = _SURE * _seconds(self._rates.prior, num_tokens, num_output, 1.0)
        lasting = []
        for info in workers:
            left_s = None if info.ends_at is None else info.ends_at - self._leave_s - now
            if left_s is None or left_s > sure_s or self._needs_s(info, num_tokens, num_output) <= left_s:
                lasting.append(info)
        return lasting or _longest(workers, now)

    def _needs_s(self, info: WorkerInfo, num_tokens: int, num_output: int) -> float:
        load, engine = self._book.of(info.worker), info.engine
        kv_share = min(1.0, load.blocks / engine.num_kv_blocks) if engine and engine.num_kv_blocks > 0 else 1.0
        return _seconds(self._rates.of(info.worker), load.queued_tokens + num_tokens, num_output, kv_share)


def _longest(workers: list[WorkerInfo], now: float) -> list[WorkerInfo]:
    """Return those whose jobs go on for long, of workers whose jobs all end."""
    left = [max(0.0, info.ends_at - now) if info.ends_at is not None else inf for info in workers]
    least = _LONG_SHARE * max(left, default=0.0)
    return [info for info, left_s in zip(workers, left, strict=True) if left_s >= least]


def _seconds(timing: Timing, num_prompt: int, num_output: int, kv_share: float) -> float:
    step_ms = timing.decode_scale * decode_steps_ms(1, kv_share, kv_share * kv_share)
    return (timing.prefill_ms(num_prompt) + num_output * step_ms) / 1000
