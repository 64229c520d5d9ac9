"""Counts what an engine computes, and how long: every adapter's `LoadReport.work`."""

from __future__ import annotations

from dataclasses import dataclass

from hpcserve.types import WorkDone


@dataclass(slots=True)
class WorkCounter:
    """The running sums behind `WorkDone`. It has no clock: durations are handed in, in seconds."""

    prefill_passes: int = 0
    prefill_tokens: int = 0
    prefill_squares: int = 0
    prefill_s: float = 0.0
    decode_steps: int = 0
    decode_kv_read: float = 0.0
    decode_kv_squares: float = 0.0
    decode_s: float = 0.0

    def prefilled(self, num_tokens: int, seconds: float) -> None:
        """Count one pass over `num_tokens` new prompt tokens."""
        self.prefill_passes += 1
        self.prefill_tokens += num_tokens
        self.prefill_squares += num_tokens * num_tokens
        self.prefill_s += seconds

    def decoded(self, kv_read: float, seconds: float) -> None:
        """Count one decode step, over a context that is the share `kv_read` of the KV cache."""
        self.decoded_evenly(kv_read, 0.0, seconds, 1)

    def decoded_evenly(self, mean_kv_read: float, growth: float, seconds: float, num_steps: int) -> None:
        """Count steps, `seconds` all together, of which each read `growth` more of the KV cache than the last."""
        self.decode_steps += num_steps
        self.decode_kv_read += mean_kv_read * num_steps
        self.decode_kv_squares += num_steps * (mean_kv_read**2 + growth**2 * (num_steps**2 - 1) / 12)
        self.decode_s += seconds

    def done(self) -> WorkDone:
        """Return the sums as a value."""
        return WorkDone(
            prefill_passes=self.prefill_passes,
            prefill_tokens=self.prefill_tokens,
            prefill_squares=self.prefill_squares,
            prefill_s=self.prefill_s,
            decode_steps=self.decode_steps,
            decode_kv_read=self.decode_kv_read,
            decode_kv_squares=self.decode_kv_squares,
            decode_s=self.decode_s,
        )
