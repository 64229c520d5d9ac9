"""Least squares for the timing model. Pure; residuals count as shares of what was measured, so that short passes and
long ones weigh alike.

No coefficient is negative in the form that is solved: a prefill pass never takes less for more tokens, and a decode
step never less for more KV, also beyond what was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from hpcserve.bench.result import DecodePoint, Fit, PrefillPoint

_ROUNDS = 20
_NEAR = 2.0  # times the median residual
_ALWAYS_NEAR = 0.01


def fit_timing(prefill: Sequence[PrefillPoint], decode: Sequence[DecodePoint]) -> Fit:
    """Return the model that is nearest to the points; each sequence has at least one."""
    steps = [point.step_ms for point in decode]
    return Fit(
        prefill_ms=fit_prefill([point.num_tokens for point in prefill], [point.pass_ms for point in prefill]),
        decode_ms=fit_decode([point.share for point in decode], steps),
        min_decode_ms=_round(min(steps)),
    )


def fit_prefill(num_tokens: Sequence[int], pass_ms: Sequence[float]) -> tuple[float, float, float]:
    """Return square, linear and constant coefficient of milliseconds over tokens, none of them negative."""
    scale = float(max(num_tokens))  # columns of one size; squares of thousands beside ones are badly conditioned
    x = np.asarray(num_tokens) / scale
    square, linear, constant = _solve(np.stack([x * x, x, np.ones_like(x)], axis=1), pass_ms)
    return _round(square / scale**2), _round(linear / scale), _round(constant)


def fit_decode(shares: Sequence[float], step_ms: Sequence[float]) -> tuple[float, float, float]:
    """Return square, linear and constant coefficient of milliseconds over the share of KV; it grows from 0 to 1.

    Solved for the slopes at 0 and at 1, b and d, of p(u) = c + b (u - u^2/2) + d u^2/2: neither is negative.
    """
    u = np.asarray(shares, dtype=float)
    half = u * u / 2
    constant, at_0, at_1 = _solve(np.stack([np.ones_like(u), u - half, half], axis=1), step_ms)
    return _round((at_1 - at_0) / 2), _round(at_0), _round(constant)


def polynomial(coefficients: tuple[float, float, float], x: float) -> float:
    """Return the value at `x`, coefficients highest power first."""
    square, linear, constant = coefficients
    return (square * x + linear) * x + constant


def _solve(columns: Any, measured: Sequence[float]) -> list[float]:
    """Return the non-negative weights of three columns that come nearest to `measured`, in shares of it.

    Points that lie far off count less (Huber's weights, by repeated least squares): a point that was measured while
    something else ran must not bend the curve.
    """
    rows = columns / np.asarray(measured, dtype=float)[:, None]
    trust = np.ones(len(rows))
    found = _least_squares(rows, trust)
    for _ in range(_ROUNDS):
        off = np.abs(rows @ found - 1)
        near = max(_ALWAYS_NEAR, _NEAR * float(np.median(off)))
        trust = np.sqrt(near / np.maximum(off, near))
        found = _least_squares(rows, trust)
    return [float(weight) for weight in found]


def _least_squares(rows: Any, trust: Any) -> Any:
    """Return the non-negative weights with which the rows come nearest to 1.

    The optimum is the plain least squares of those columns whose weight is not zero; there are seven sets to try.
    """
    num_columns = rows.shape[1]
    best, best_error = np.zeros(num_columns), float("inf")
    for size in range(1, num_columns + 1):
        for chosen in map(list, combinations(range(num_columns), size)):
            part = rows[:, chosen] * trust[:, None]
            weights = np.linalg.lstsq(part, trust, rcond=None)[0]
            error = float(np.sum((part @ weights - trust) ** 2))
            if (weights >= 0).all() and error < best_error:
                best, best_error = np.zeros(num_columns), error
                best[chosen] = weights
    return best


def _round(value: float) -> float:
    return float(f"{value:.7g}")
