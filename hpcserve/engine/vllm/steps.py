"""Splits the time of vLLM's steps into prefill passes and decode steps, for `LoadReport.work`.

Durations are those between the ends of steps: vLLM's own (`elapsed_ms`) leave the forward pass out where the model runs
in the core's process. Steps that only wait for KV count as nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hpcserve.engine.work import WorkCounter

_MIN_PREFILL = 32  # tokens; the rest of a prompt that was pulled or cached says little about computing
_WEIGHT = 0.2  # of the newest decode step in what a decode step is taken to last


@dataclass
class StepMeter:
    """Counts steps. Times are seconds on a monotonic clock of the caller's."""

    work: WorkCounter = field(default_factory=WorkCounter)
    _busy_since: float | None = None  # end of the last step; None: idle
    _decode_s: float = 0.0  # a recent step that only decoded

    def begin(self, now_s: float) -> None:
        """Work arrived; counts where the engine was idle."""
        if self._busy_since is None:
            self._busy_since = now_s

    def rest(self) -> None:
        """No work is left."""
        self._busy_since = None

    def step(self, now_s: float, *, prompt_tokens: int, num_decoding: int, kv_usage: float, is_busy: bool) -> None:
        """A step ended that computed so many prompt tokens, and one token for each of `num_decoding` sequences.

        A step of both is taken to decode for as long as a step that only decodes, and half its time at most.
        """
        began, self._busy_since = self._busy_since, now_s if is_busy else None
        if began is None or now_s <= began:
            return
        if prompt_tokens >= _MIN_PREFILL:
            decode_s = min(self._decode_s, (now_s - began) / 2) if num_decoding else 0.0
            self.work.prefilled(prompt_tokens, now_s - began - decode_s)
        elif num_decoding and not prompt_tokens:
            self._decode_s += _WEIGHT * (now_s - began - self._decode_s) if self._decode_s else now_s - began
            self.work.decoded(kv_usage, now_s - began)
