"""How much longer something takes on one worker than expected: a ratio, learned from what may be nonsense."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, isfinite

MEMORY_MS = 10_000.0  # of expected work: what was measured before counts less and less
DOUBT_MS = 100.0  # of expected work: what a prior weighs beside the measurements
REPORT_MS = 1000.0  # of expected work: what one report weighs at most
JUMP = 4.0  # a measurement counts as no further from what was learned than this factor
SPREAD = 16.0  # how many times slower or faster than the prior anything is believed to be
ABSURD = 1000.0  # ratios beyond this, or under its inverse, are no measurements


@dataclass(slots=True)
class Evidence:
    """Recent work: the time that it took, and that it was expected to take. Milliseconds."""

    measured_ms: float = 0.0
    expected_ms: float = 0.0

    def add(self, measured_ms: float, expected_ms: float, prior: float) -> None:
        """Take a measurement in. One that cannot be true is ignored, an outlier moves the ratio a little.

        `prior` is what the ratio was taken for without evidence.
        """
        if not (isfinite(expected_ms) and expected_ms > 0):
            return
        ratio = measured_ms / expected_ms
        if not 1 / ABSURD <= ratio <= ABSURD:  # false for NaN too
            return
        known = self.ratio(prior)
        ratio = _between(ratio, known / JUMP, known * JUMP)
        weight = min(expected_ms, REPORT_MS)
        past = exp(-weight / MEMORY_MS)
        self.measured_ms = self.measured_ms * past + ratio * weight
        self.expected_ms = self.expected_ms * past + weight

    def fade(self, factor: float) -> None:
        """Let the evidence weigh less, without a change of what it says."""
        self.measured_ms *= factor
        self.expected_ms *= factor

    @property
    def measured(self) -> float | None:
        """The ratio that was measured lately; None if that was too little to tell others of."""
        return self.measured_ms / self.expected_ms if self.expected_ms >= DOUBT_MS else None

    def ratio(self, prior: float) -> float:
        """Return how much longer things take than expected; `prior` without evidence, and beside a little of it."""
        ratio = (self.measured_ms + DOUBT_MS * prior) / (self.expected_ms + DOUBT_MS)
        return _between(ratio, prior / SPREAD, prior * SPREAD)


def _between(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)
