"""How long the simulated GPU computes. Pure arithmetic; nobody waits here.

The polynomials are those that NVIDIA Dynamo publishes for its mocker, a fit to measurements of one GPU engine; its
replay (1.6.1) was seen to follow them to six digits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from hpcserve.config.models import MockConfig


@dataclass(frozen=True)
class TimingModel:
    """Durations in seconds. The coefficients are in milliseconds, highest power first."""

    kv_bytes_per_token: int = 131072
    kv_bandwidth_bytes_per_s: float = 50e9
    prefill_ms: tuple[float, float, float] = (4.209989e-07, 1.518344e-02, 16.50142)  # in new tokens
    decode_ms: tuple[float, float, float] = (-25.74, 54.01, 5.74)  # in the share of the KV cache that is read
    min_decode_ms: float = 1.0

    @classmethod
    def from_config(cls, config: MockConfig) -> TimingModel:
        """Return the published polynomials with the configured KV size and bandwidth."""
        return cls(config.kv_bytes_per_token, config.kv_bandwidth_gb_per_s * 1e9)

    def times(self, factor: float) -> TimingModel:
        """Return a model that computes `factor` times as long; moving KV takes the same."""
        if factor == 1:
            return self
        return replace(
            self,
            prefill_ms=_scaled(self.prefill_ms, factor),
            decode_ms=_scaled(self.decode_ms, factor),
            min_decode_ms=self.min_decode_ms * factor,
        )

    def prefill_s(self, num_tokens: int) -> float:
        """Return the duration of one pass over `num_tokens` new prompt tokens; no tokens take no time."""
        if num_tokens == 0:
            return 0.0
        return _polynomial(self.prefill_ms, num_tokens) / 1000

    def decode_s(self, kv_read: float) -> float:
        """Return the duration of one decode step.

        `kv_read` is the context of the sequences that decode, in tokens, over the tokens that the KV cache can hold.
        Sequences that share blocks each read them; 1 is the most that the polynomial is meant for.
        """
        return max(self.min_decode_ms, _polynomial(self.decode_ms, kv_read)) / 1000

    def decode_many_s(self, kv_reads: Iterable[float]) -> list[float]:
        """Return `decode_s` of each: a simulator asks for millions."""
        square, linear, constant = self.decode_ms
        return [max(self.min_decode_ms, (square * x + linear) * x + constant) / 1000 for x in kv_reads]

    def transfer_s(self, num_tokens: int) -> float:
        """Return the duration of moving the KV of `num_tokens` tokens between workers."""
        return num_tokens * self.kv_bytes_per_token / self.kv_bandwidth_bytes_per_s


def _scaled(coefficients: tuple[float, float, float], factor: float) -> tuple[float, float, float]:
    square, linear, constant = coefficients
    return square * factor, linear * factor, constant * factor


def _polynomial(coefficients: tuple[float, float, float], x: float) -> float:
    square, linear, constant = coefficients
    return (square * x + linear) * x + constant
