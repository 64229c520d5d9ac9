"""What was measured and what was fitted to it. Values only; the file that simulations read is made of them here."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import msgspec

from hpcserve.engine.mock.timing_file import TimingFile
from hpcserve.types import EngineInfo


class PrefillPoint(msgspec.Struct, frozen=True, kw_only=True):
    """Prompts of one length; medians over the repeats, in milliseconds."""

    num_tokens: int
    ttft_ms: float  # of a lone prompt, as a client of the engine sees it
    pass_ms: float  # of the engine's step alone
    spread: float  # between the quartiles of `pass_ms`, over its median
    fitted_ms: float = 0.0

    @property
    def error(self) -> float:
        """How far the fit is from `pass_ms`, as a share of it; signed."""
        return self.fitted_ms / self.pass_ms - 1


class DecodePoint(msgspec.Struct, frozen=True, kw_only=True):
    """Steps of one batch that only decodes; the median step, in milliseconds."""

    num_sequences: int
    context: int  # tokens of all sequences together, prompt and output
    share: float  # of the KV cache that a step reads
    step_ms: float
    spread: float  # between the quartiles of steps, over `step_ms`
    fitted_ms: float = 0.0

    @property
    def error(self) -> float:
        """How far the fit is from `step_ms`, as a share of it; signed."""
        return self.fitted_ms / self.step_ms - 1


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """The polynomials, highest power first, and the floor of a decode step; milliseconds."""

    prefill_ms: tuple[float, float, float]  # over new prompt tokens
    decode_ms: tuple[float, float, float]  # over the share of the KV cache that is read
    min_decode_ms: float


class BenchResult(msgspec.Struct, frozen=True, kw_only=True):
    """One run of `hpcserve bench`."""

    info: EngineInfo
    date: str  # ISO 8601, UTC
    version: str  # of hpcserve
    fit: Fit
    prefill: tuple[PrefillPoint, ...]
    decode: tuple[DecodePoint, ...]
    kv_bytes_per_token: int | None = None  # None: not known of this model
    warnings: tuple[str, ...] = ()  # why the fit should not be trusted, and what to do

    @property
    def prefill_error(self) -> float:
        """Median of the residuals' sizes, as a share of what was measured."""
        return median_error(self.prefill)

    @property
    def decode_error(self) -> float:
        """Median of the residuals' sizes, as a share of what was measured."""
        return median_error(self.decode)

    @property
    def ttft_overhead_ms(self) -> float:
        """What a lone prompt's time to first token has beyond its pass: the way into the engine and out of it."""
        return statistics.median(point.ttft_ms - point.pass_ms for point in self.prefill)

    def to_file(self) -> TimingFile:
        """Return what `simulate --timing` reads."""
        info = self.info
        return TimingFile(
            prefill_ms=self.fit.prefill_ms,
            decode_ms=self.fit.decode_ms,
            min_decode_ms=self.fit.min_decode_ms,
            kv_bytes_per_token=self.kv_bytes_per_token,
            num_kv_blocks=info.num_kv_blocks or None,
            block_size=info.block_size,
            max_batched_tokens=info.max_batched_tokens,
            max_num_seqs=info.max_num_seqs,
            provenance={
                "engine": info.engine,
                "model": info.model,
                "date": self.date,
                "hpcserve": self.version,
                "prefill_error": round(self.prefill_error, 4),
                "decode_error": round(self.decode_error, 4),
                "ttft_overhead_ms": round(self.ttft_overhead_ms, 4),
                "warnings": list(self.warnings),
                "prefill": [_rounded(point) for point in self.prefill],
                "decode": [_rounded(point) for point in self.decode],
            },
        )


def median_error(points: Sequence[PrefillPoint] | Sequence[DecodePoint]) -> float:
    """Return the median of the residuals' sizes, as a share of what was measured."""
    return statistics.median(abs(point.error) for point in points)


def _rounded(point: PrefillPoint | DecodePoint) -> dict[str, float]:
    fields = {name: getattr(point, name) for name in point.__struct_fields__}
    return {name: value if isinstance(value, int) else float(f"{value:.6g}") for name, value in fields.items()}
