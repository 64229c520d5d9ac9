"""What an engine measures about itself: counts of requests and tokens, and the rates of prefill and decode."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hpcserve.engine.vllm.core import Prefilled
from hpcserve.engine.vllm.pull_meter import PullMeter
from hpcserve.engine.vllm.steps import StepMeter
from hpcserve.types import LoadReport, RequestId

_MIN_PREFILL = 32  # computed tokens; steps with fewer are decode steps
_WEIGHT = 0.2  # of the newest measurement in a rate


@dataclass
class RateMeter:
    """Rates from the engine's steps. A step that computes prompts counts for prefill, any other for decode."""

    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None
    _busy_since: float | None = None

    def begin(self, now_s: float) -> None:
        """Work arrived; counts where the engine was idle."""
        if self._busy_since is None:
            self._busy_since = now_s

    def step(self, now_s: float, *, computed: int, generated: int, is_busy: bool) -> None:
        """A step ended: `computed` prompt tokens (0 until a prompt is done) and `generated` tokens came of it."""
        began, elapsed_s = self._busy_since, now_s - (self._busy_since or now_s)
        if computed or generated or not is_busy:
            self._busy_since = now_s if is_busy else None
        if began is None or elapsed_s <= 0:
            return
        if computed >= _MIN_PREFILL:
            self.prefill_tokens_per_s = _blend(self.prefill_tokens_per_s, computed / elapsed_s)
        elif generated and not computed:
            self.decode_tokens_per_s = _blend(self.decode_tokens_per_s, generated / elapsed_s)


@dataclass
class LoadMeter:
    """All counters of one engine. The counts of requests are our own, so they are right between steps too."""

    rates: RateMeter = field(default_factory=RateMeter)
    pulls: PullMeter = field(default_factory=PullMeter)
    steps: StepMeter = field(default_factory=StepMeter)
    prompt_tokens: int = 0
    generated_tokens: int = 0
    cached_tokens: int = 0
    pulled_tokens: int = 0
    pull_failures: int = 0
    _uncomputed: dict[RequestId, int] = field(default_factory=dict)
    _num_open: int = 0
    _num_running: int = 0
    _kv_usage: float = 0.0

    @property
    def waiting_tokens(self) -> int:
        """Prompt tokens of requests that have no token yet."""
        return sum(self._uncomputed.values())

    def open(self, request_id: RequestId, num_tokens: int) -> None:
        """A request of `num_tokens` prompt tokens was handed to the engine."""
        self._num_open += 1
        self._uncomputed[request_id] = num_tokens
        self.rates.begin(time.monotonic())
        self.steps.begin(time.monotonic())

    def computed(self, request_id: RequestId) -> None:
        """The prompt of a request waits no longer; its first output may come much later."""
        self.prompt_tokens += self._uncomputed.pop(request_id, 0)

    def prefilled(self, request_id: RequestId, come_from: Prefilled) -> None:
        """The first output of a request is there."""
        self.computed(request_id)
        self.cached_tokens += come_from.cached
        self.pulled_tokens += come_from.pulled

    def close(self, request_id: RequestId) -> None:
        """A request has ended, one way or another."""
        self._num_open -= 1
        self._uncomputed.pop(request_id, None)
        if not self._num_open:
            self.steps.rest()

    def observe(self, scheduler: Any, iteration: Any) -> None:
        """Take vLLM's statistics of one step (`SchedulerStats`, `IterationStats`; either may be None)."""
        if scheduler is not None:
            self._num_running, self._kv_usage = scheduler.num_running_reqs, scheduler.kv_cache_usage
        self.rates.step(
            time.monotonic(),
            computed=iteration.prompt_token_stats.computed if iteration else 0,
            generated=iteration.num_generation_tokens if iteration else 0,
            is_busy=self._num_running > 0,
        )
        if scheduler is not None:
            self._count_step(scheduler)

    def _count_step(self, scheduler: Any) -> None:
        details = scheduler.iteration_details  # None: a step that computed nothing
        self.steps.step(
            time.monotonic(),
            prompt_tokens=details.num_ctx_tokens if details else 0,
            num_decoding=details.num_generation_requests if details else 0,
            kv_usage=scheduler.kv_cache_usage,
            is_busy=self._num_open > 0,  # not what vLLM says: its last step before may be told after a request came
        )

    def report(self) -> LoadReport:
        """Return the newest numbers."""
        num_running = min(self._num_running, self._num_open)
        return LoadReport(
            num_running=num_running,
            num_waiting=self._num_open - num_running,
            waiting_tokens=self.waiting_tokens,
            kv_usage=self._kv_usage if self._num_open else 0.0,  # vLLM tells nothing after an abort until it steps
            prefill_tokens_per_s=self.rates.prefill_tokens_per_s,
            decode_tokens_per_s=self.rates.decode_tokens_per_s,
            prompt_tokens_total=self.prompt_tokens,
            generated_tokens_total=self.generated_tokens,
            cached_tokens_total=self.cached_tokens,
            pulled_tokens_total=self.pulled_tokens,
            pull_failures_total=self.pull_failures,
            pull_tokens_per_s=self.pulls.tokens_per_s,
            pull_latency_ms=self.pulls.latency_ms,
            work=self.steps.work.done(),
        )


def make_stat_logger(meter: LoadMeter) -> Callable[[Any, int], Any]:
    """Return a factory of vLLM stat loggers that feed `meter`."""
    from vllm.v1.metrics.loggers import StatLoggerBase

    class MeterLogger(StatLoggerBase):  # type: ignore[misc]
        """Passes every step's statistics on."""

        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
            pass

        def record(
            self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
        ) -> None:
            meter.observe(scheduler_stats, iteration_stats)

        def log_engine_initialized(self) -> None:
            pass

    return MeterLogger


def _blend(old: float | None, new: float) -> float:
    return new if old is None else old + _WEIGHT * (new - old)
