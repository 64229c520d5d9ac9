"""What is known of each worker's speed, learned from what engines report. It predicts nothing itself: `Timing` does.

Of each worker two ratios are learned, for prefill passes and for decode steps: the time that they took over what is
published for that work. Newer work counts more. Without measurements a worker is taken for as fast as the median of
its pool, or of all where nobody in the pool has measured yet, or as published. What was learned fades back to that
while a worker reports nothing new, so that one which was slow once, or lied, is tried again.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from math import isfinite
from statistics import median

from hpcserve.router.evidence import Evidence
from hpcserve.router.timing import Timing, decode_steps_ms, passes_ms
from hpcserve.types import LoadReport, WorkDone, WorkerId

FADE = 0.993
"""What evidence weighs after a round of reports, which is as many as there are workers: half after a hundred."""
_MAX_PULL_LATENCY_MS = 10_000.0
_PULL_SPREAD = 1000.0  # measured rates are believed within this factor of the configured one


@dataclass(slots=True)
class _Known:
    """Of one worker."""

    pool: str
    work: WorkDone = field(default_factory=WorkDone)  # of its last report
    prefill: Evidence = field(default_factory=Evidence)
    decode: Evidence = field(default_factory=Evidence)
    pull: tuple[float, float] | None = None  # ms a token, ms of latency; as measured
    pulled_tokens: int = 0
    pull_trust: float = 0.0  # 1: just measured


class Rates:
    """A `Timing` for every worker; `prior` holds until something is known."""

    def __init__(self, prior: Timing) -> None:
        self.prior = prior  # of whom nothing is known
        self._known: dict[WorkerId, _Known] = {}
        self._timings: dict[WorkerId, Timing] = {}
        self._medians: dict[str, tuple[float, float]] = {}  # prefill and decode, by pool
        self._num_reports = 0  # in this round

    def of(self, worker: WorkerId) -> Timing:
        """Return what to predict `worker` by; the prior for unknown ones."""
        return self._timings.get(worker, self.prior)

    def open(self, worker: WorkerId, pool: str) -> None:
        """Begin to learn about `worker`; what is known of it already stays."""
        if worker not in self._known:
            self._known[worker] = _Known(pool)
            self._medians.setdefault(pool, self._medians_of(pool))
            self._predict(worker)

    def close(self, worker: WorkerId) -> None:
        """Forget `worker`."""
        self._known.pop(worker, None)
        self._timings.pop(worker, None)

    def report(self, worker: WorkerId, report: LoadReport) -> None:
        """Learn from what an engine measured. Reports of unknown workers are ignored."""
        known = self._known.get(worker)
        if known is None:
            return
        with suppress(OverflowError):  # numbers that no float holds measure nothing
            self._learn_work(known, report.work)
            self._learn_pull(known, report)
        self._num_reports += 1
        if self._num_reports < len(self._known):
            self._predict(worker)
        else:
            self._end_round()

    def _learn_work(self, known: _Known, now: WorkDone) -> None:
        before, known.work = known.work, now
        prefill, decode = self._medians[known.pool]
        _learn_prefill(known.prefill, before, now, prefill)
        _learn_decode(known.decode, before, now, decode)

    def _learn_pull(self, known: _Known, report: LoadReport) -> None:
        pull = self._measured_pull(report)
        if pull is not None and (pull != known.pull or report.pulled_tokens_total != known.pulled_tokens):
            known.pull, known.pull_trust = pull, 1.0
        known.pulled_tokens = report.pulled_tokens_total

    def _measured_pull(self, report: LoadReport) -> tuple[float, float] | None:
        """Return ms a token and ms of latency, the configured ones for what is not reported; None for nonsense."""
        rate, latency_ms, prior = report.pull_tokens_per_s, report.pull_latency_ms, self.prior
        if rate is None and latency_ms is None:
            return None
        rate = prior.pull_tokens_per_s if rate is None else rate
        latency_ms = prior.pull_latency_ms if latency_ms is None else latency_ms
        is_sound = 1 / _PULL_SPREAD <= rate / prior.pull_tokens_per_s <= _PULL_SPREAD and isfinite(latency_ms)
        return (1000 / rate, min(latency_ms, _MAX_PULL_LATENCY_MS)) if is_sound and latency_ms >= 0 else None

    def _end_round(self) -> None:
        self._num_reports = 0
        for known in self._known.values():
            known.prefill.fade(FADE)
            known.decode.fade(FADE)
            known.pull_trust *= FADE
        self._medians = {pool: self._medians_of(pool) for pool in {known.pool for known in self._known.values()}}
        for worker in self._known:
            self._predict(worker)

    def _medians_of(self, pool: str) -> tuple[float, float]:
        everybody = list(self._known.values())
        peers = [known for known in everybody if known.pool == pool]
        prefill, decode = self._medians.get(pool, (1.0, 1.0))
        return (
            _median([k.prefill for k in peers], [k.prefill for k in everybody], prefill),
            _median([k.decode for k in peers], [k.decode for k in everybody], decode),
        )

    def _predict(self, worker: WorkerId) -> None:
        """Put what is known of `worker` into its timing: measured, or what it is otherwise taken for."""
        known, prior = self._known[worker], self.prior
        token_ms, latency_ms = 1000 / prior.pull_tokens_per_s, prior.pull_latency_ms
        if known.pull is not None:
            token_ms += known.pull_trust * (known.pull[0] - token_ms)
            latency_ms += known.pull_trust * (known.pull[1] - latency_ms)
        prefill, decode = self._medians[known.pool]
        self._timings[worker] = Timing(
            pull_tokens_per_s=1000 / token_ms,
            pull_latency_ms=latency_ms,
            prefill_scale=_rounded(known.prefill.ratio(prefill)),
            decode_scale=_rounded(known.decode.ratio(decode)),
        )


def _learn_prefill(evidence: Evidence, before: WorkDone, now: WorkDone, prior: float) -> None:
    num_passes = now.prefill_passes - before.prefill_passes
    num_tokens = now.prefill_tokens - before.prefill_tokens
    squares = now.prefill_squares - before.prefill_squares
    if num_passes > 0 and num_tokens >= 0 and squares >= 0:
        evidence.add((now.prefill_s - before.prefill_s) * 1000, passes_ms(num_passes, num_tokens, squares), prior)


def _learn_decode(evidence: Evidence, before: WorkDone, now: WorkDone, prior: float) -> None:
    num_steps = now.decode_steps - before.decode_steps
    kv_read = now.decode_kv_read - before.decode_kv_read
    squares = now.decode_kv_squares - before.decode_kv_squares
    if num_steps > 0 and kv_read >= 0 and squares >= 0:
        evidence.add((now.decode_s - before.decode_s) * 1000, decode_steps_ms(num_steps, kv_read, squares), prior)


def _median(peers: Iterable[Evidence], everybody: Iterable[Evidence], otherwise: float) -> float:
    """Return the median of what `peers` measured lately, of `everybody` if none of those has."""
    for group in (peers, everybody):
        ratios = [evidence.measured for evidence in group if evidence.measured is not None]
        if ratios:
            return median(ratios)
    return otherwise


def _rounded(ratio: float) -> float:
    return float(f"{ratio:.3g}")  # workers that are as good as equal must tie, so that they take turns
