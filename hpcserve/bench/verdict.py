"""Whether a fit can be trusted, and what to do where it cannot. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from hpcserve.bench.result import DecodePoint, PrefillPoint, median_error

POOR = 0.15  # median residual, as a share of what was measured
_LITTLE = 0.4  # of the KV cache
_ALIKE = 0.25  # shares of two batches that are compared


def find_warnings(prefill: Sequence[PrefillPoint], decode: Sequence[DecodePoint]) -> Iterator[str]:
    """Yield a line for each thing that is wrong."""
    if (error := median_error(prefill)) > POOR:
        yield f"prefill: the fit is {error:.0%} off in the median; {_why_prefill(prefill)}"
    if (error := median_error(decode)) > POOR:
        yield f"decode: the fit is {error:.0%} off in the median; {_why_decode(decode)}"
    if (share := max(point.share for point in decode)) < _LITTLE:
        yield (
            f"decode: measured up to {share:.0%} of the KV cache only, what is beyond is extrapolated; "
            "more sequences or longer contexts would read more"
        )


def _why_prefill(points: Sequence[PrefillPoint]) -> str:
    if (spread := _scatter(points)) > POOR:
        return _busy(spread)
    worst = max(points, key=lambda point: abs(point.error))
    return (
        f"passes do not follow a polynomial (worst at {worst.num_tokens:,} tokens: {worst.pass_ms:.1f} ms, fitted "
        f"{worst.fitted_ms:.1f}); leave out lengths that are not served, with --max-prompt"
    )


def _why_decode(points: Sequence[DecodePoint]) -> str:
    if (spread := _scatter(points)) > POOR:
        return _busy(spread)
    pair = _most_unlike(points)
    if pair is None:
        return "steps do not follow a polynomial in the share of the KV cache; the table says where"
    few, many = sorted(pair, key=lambda point: point.num_sequences)
    return (
        f"steps depend on the number of sequences, which the model leaves out ({few.num_sequences} sequences that read "
        f"{few.share:.0%}: {few.step_ms:.1f} ms; {many.num_sequences} that read {many.share:.0%}: {many.step_ms:.1f} "
        "ms); fit the length that is served, with --context TOKENS"
    )


def _most_unlike(points: Sequence[DecodePoint]) -> tuple[DecodePoint, DecodePoint] | None:
    """Return the two batches that read about the same share and differ most in their steps."""
    pairs = [
        (one, other)
        for index, one in enumerate(points)
        for other in points[index + 1 :]
        if one.num_sequences != other.num_sequences
        and abs(one.share - other.share) <= _ALIKE * max(one.share, other.share)
    ]
    return max(pairs, key=lambda pair: _ratio(pair[0].step_ms, pair[1].step_ms), default=None)


def _ratio(one: float, other: float) -> float:
    return max(one, other) / min(one, other)


def _scatter(points: Sequence[PrefillPoint] | Sequence[DecodePoint]) -> float:
    return statistics.median(point.spread for point in points)


def _busy(spread: float) -> str:
    return f"repeats of the same scatter by {spread:.0%}: something else runs on this machine, measure again without it"
