"""Measures the rates of an engine from its steps. Recent steps weigh most."""

from __future__ import annotations

from hpcserve.engine.mock.scheduler import Step
from hpcserve.engine.work import WorkCounter

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

    def add(self, tokens: int, seconds: float, num_steps: int = 1) -> None:
        """Count equal steps of so many tokens and seconds each."""
        past = _DECAY**num_steps
        weight = (1 - past) / (1 - _DECAY)  # of the steps together, the last one's being 1
        self._tokens = self._tokens * past + tokens * weight
        self._seconds = self._seconds * past + seconds * weight


class Meter:
    """Prefill is measured in steps that prefill, decode in steps that only decode; `work` counts both parts of all."""

    def __init__(self) -> None:
        self.prefill = Rate()
        self.decode = Rate()
        self.work = WorkCounter()

    def add(self, step: Step, kv_read: float) -> None:
        """Count one step, whose decoding read `kv_read` of the KV cache, a share."""
        if step.prefill_tokens:
            self.prefill.add(step.prefill_tokens, step.duration_s)
        elif step.emitted:
            self.decode.add(len(step.emitted), step.duration_s)
        if step.prefill_tokens:
            self.work.prefilled(step.prefill_tokens, step.prefill_s)
        if step.decode_context:
            self.work.decoded(kv_read, step.decode_s)

    def add_leap(self, num_sequences: int, num_steps: int, seconds: float, kv_read: float, growth: float) -> None:
        """Count `num_steps` plain decode steps, `seconds` all together.

        On average they read `kv_read` of the KV cache, and each `growth` more than the last.
        """
        self.decode.add(num_sequences, seconds / num_steps, num_steps)
        self.work.decoded_evenly(kv_read, growth, seconds, num_steps)
