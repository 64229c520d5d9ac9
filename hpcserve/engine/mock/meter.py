"""Measures the rates of an engine from its steps. Recent steps weigh most."""

from __future__ import annotations

from hpcserve.engine.mock.scheduler import Step

_DECAY = 0.98  # weight of the past after each step: about the last 50 count


class Rate:
    """Tokens over seconds."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0

    @property
    def per_s(self) -> float | None:
        """Tokens a second; None until something was measured."""
        return self._tokens / self._seconds if self._seconds else None

    def add(self, tokens: int, seconds: float) -> None:
        """Count one step."""
        self._tokens = self._tokens * _DECAY + tokens
        self._seconds = self._seconds * _DECAY + seconds


class Meter:
    """Prefill is measured in steps that prefill, decode in steps that only decode."""

    def __init__(self) -> None:
        self.prefill = Rate()
        self.decode = Rate()

    def add(self, step: Step) -> None:
        """Count one step."""
        if step.prefill_tokens:
            self.prefill.add(step.prefill_tokens, step.duration_s)
        elif step.emitted:
            self.decode.add(len(step.emitted), step.duration_s)
