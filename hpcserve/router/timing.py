"""How long one worker computes a prompt and moves its KV, as the router predicts. Milliseconds and tokens.

A pass takes what NVIDIA Dynamo publishes for one GPU (see `engine.mock.timing`), times what `rates` has learned of the
worker: the curve's shape stays, its scale is measured. Where nothing was measured yet, it is a prior.
"""

from __future__ import annotations

from dataclasses import dataclass

PASS_TOKENS = 8192  # prompt tokens in one engine step


@dataclass(frozen=True, slots=True)
class Timing:
    """Predicts. `pull_tokens_per_s` is the rate of one transfer, `pull_latency_ms` what each takes besides."""

    pull_tokens_per_s: float
    pull_latency_ms: float
    prefill_scale: float = 1.0  # 2: passes take twice as long as published
    decode_scale: float = 1.0  # the same of decode steps

    def prefill_ms(self, num_tokens: int) -> float:
        """Return the time to compute so many prompt tokens; none take none."""
        full, rest = divmod(num_tokens, PASS_TOKENS)
        return self.prefill_scale * (full * _FULL_PASS_MS + (pass_ms(rest) if rest else 0.0))

    def pull_ms(self, num_tokens: int) -> float:
        """Return the time to move the KV of so many tokens."""
        return self.pull_latency_ms + num_tokens / self.pull_tokens_per_s * 1000

    def cheapest(self, new_tokens: int, pull_tokens: int) -> tuple[float, int]:
        """Return (ms of pulling, tokens still to compute) by the faster way: pulling `pull_tokens` of them, or not."""
        if not pull_tokens:
            return 0.0, new_tokens
        pull_ms, rest = self.pull_ms(pull_tokens), new_tokens - pull_tokens
        if pull_ms + self.prefill_ms(rest) < self.prefill_ms(new_tokens):
            return pull_ms, rest
        return 0.0, new_tokens


def pass_ms(num_tokens: int) -> float:
    """Return the published time of one pass over `num_tokens` new prompt tokens."""
    return passes_ms(1, num_tokens, num_tokens * num_tokens)


def passes_ms(num_passes: float, num_tokens: float, squares: float) -> float:
    """Return the published time of several passes: their tokens together, and the sum of the squares of each one's."""
    return 4.209989e-07 * squares + 1.518344e-02 * num_tokens + 16.50142 * num_passes


def decode_steps_ms(num_steps: float, kv_read: float, squares: float) -> float:
    """Return the published time of decode steps: their contexts as shares of the KV cache, summed, and the squares."""
    return 5.74 * num_steps + 54.01 * kv_read - 25.74 * squares


_FULL_PASS_MS = pass_ms(PASS_TOKENS)
