import random
from itertools import pairwise

import pytest

from hpcserve.bench.fit import fit_decode, fit_prefill, polynomial

TOKENS = [64, 128, 256, 512, 1024, 2048, 4096, 8192]
SHARES = [0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.85]


def test_a_polynomial_comes_back_as_it_was() -> None:
    prefill, decode = (4.209989e-07, 1.518344e-02, 16.50142), (-25.74, 54.01, 5.74)
    assert fit_prefill(TOKENS, [polynomial(prefill, x) for x in TOKENS]) == pytest.approx(prefill, rel=1e-4)
    assert fit_decode(SHARES, [polynomial(decode, x) for x in SHARES]) == pytest.approx(decode, rel=1e-4)


def test_no_prefill_coefficient_is_negative() -> None:
    bent_down = [10 + 0.05 * x - 4e-6 * x * x for x in TOKENS]
    square, linear, constant = fit_prefill(TOKENS, bent_down)
    assert square == 0
    assert linear > 0
    assert constant >= 0
    assert fit_prefill(TOKENS, [0.01 * x - 0.3 for x in TOKENS])[2] == 0


@pytest.mark.parametrize("measured", [[5 - 4 * x for x in SHARES], [5 + 40 * x - 60 * x * x for x in SHARES]])
def test_a_decode_step_takes_no_less_for_more(measured: list[float]) -> None:
    coefficients = fit_decode(SHARES, measured)
    fitted = [polynomial(coefficients, x / 100) for x in range(101)]
    assert all(after >= before - 1e-6 for before, after in pairwise(fitted))
    assert fitted[0] > 0


def test_one_disturbed_point_does_not_bend_the_curve() -> None:
    true = (0.0, 130.0, 4.0)
    measured = [polynomial(true, x) * factor for x, factor in zip(SHARES, (1, 0.99, 1, 1.01, 1, 3, 1), strict=True)]
    coefficients = fit_decode(SHARES, measured)
    for x in SHARES:
        assert polynomial(coefficients, x) == pytest.approx(polynomial(true, x), rel=0.05)


def test_short_passes_weigh_as_much_as_long_ones() -> None:
    rng = random.Random(3)
    true = (3e-5, 0.05, 4.3)
    measured = [polynomial(true, x) * rng.uniform(0.97, 1.03) for x in TOKENS]
    coefficients = fit_prefill(TOKENS, measured)
    for x in TOKENS:
        assert polynomial(coefficients, x) == pytest.approx(polynomial(true, x), rel=0.06)


def test_few_points_are_enough_for_something() -> None:
    square, linear, constant = fit_prefill([512], [30.0])
    assert square * 512**2 + linear * 512 + constant == pytest.approx(30)
    assert polynomial(fit_decode([0.1, 0.2], [5.0, 6.0]), 0.2) == pytest.approx(6, rel=1e-3)
