"""How long computing a prompt and moving its KV take, as the router predicts. Milliseconds and tokens.

A pass takes what NVIDIA Dynamo publishes for one GPU (see `engine.mock.timing`), which is right for the mock engine.
For other engines it is a prior: what counts in a choice is how one worker compares with another.
"""

from __future__ import annotations

from dataclasses import dataclass

PASS_TOKENS = 8192  # prompt tokens in one engine step


@dataclass(frozen=True)
class Timing:
    """Predicts. `pull_tokens_per_s` is the rate of one transfer, `pull_latency_ms` what each takes besides."""

    pull_tokens_per_s: float
    pull_latency_ms: float

    def prefill_ms(self, num_tokens: int) -> float:
        """Return the time to compute so many prompt tokens; none take none."""
        full, rest = divmod(num_tokens, PASS_TOKENS)
        return full * _pass_ms(PASS_TOKENS) + (_pass_ms(rest) if rest else 0.0)

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


def _pass_ms(num_tokens: int) -> float:
    return (4.209989e-07 * num_tokens + 1.518344e-02) * num_tokens + 16.50142
