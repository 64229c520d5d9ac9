"""Quantiles of a histogram's buckets, as Prometheus' `histogram_quantile` has them: by a straight line in a bucket."""

from __future__ import annotations

from collections.abc import Sequence


def quantile(share: float, counts: Sequence[int], bounds: Sequence[float]) -> float | None:
    """Return the value that `share` of the observations, 0 to 1, do not exceed; None without any.

    `counts` has one bucket more than `bounds`, for what is beyond the last one: of that no more is known, so that the
    last bound is returned.
    """
    rank, lower = share * sum(counts), 0.0
    if not any(counts):
        return None
    for count, bound in zip(counts, bounds, strict=False):
        if count and rank <= count:
            return lower + (bound - lower) * rank / count
        rank, lower = rank - count, bound
    return bounds[-1]
