"""Latency and rate of pulls, fitted to made-up ones. Needs no engine."""

from __future__ import annotations

import random

import pytest

from hpcserve.engine.vllm.pull_meter import PullMeter


def fit(*pulls: tuple[int, float]) -> PullMeter:
    meter = PullMeter()
    for num_tokens, seconds in pulls:
        meter.add(num_tokens, seconds)
    return meter


def take(num_tokens: int) -> float:
    """Return 8 ms and a second for 200,000 tokens."""
    return 0.008 + num_tokens / 200_000


def test_nothing_is_known_before_the_third_pull() -> None:
    meter = fit((500, take(500)), (2000, take(2000)))
    assert (meter.latency_ms, meter.tokens_per_s) == (None, None)


def test_latency_and_rate_are_told_apart_by_the_lengths() -> None:
    meter = fit(*((length, take(length)) for length in (500, 1000, 2000, 4000)))
    assert meter.latency_ms == pytest.approx(8.0)
    assert meter.tokens_per_s == pytest.approx(200_000)


def test_pulls_that_were_held_up_change_little() -> None:
    choice = random.Random(5)
    lengths = [choice.randrange(200, 4000) for _ in range(32)]
    held_up = [(length, take(length) + (0.5 if index % 5 == 0 else 0.0)) for index, length in enumerate(lengths)]
    meter = fit(*held_up)
    assert meter.latency_ms == pytest.approx(8.0, rel=0.5)
    assert meter.tokens_per_s == pytest.approx(200_000, rel=0.2)


def test_pulls_of_one_length_have_a_latency_and_no_rate() -> None:
    meter = fit(*((1000, 0.013) for _ in range(5)))
    assert meter.latency_ms == pytest.approx(13.0)
    assert meter.tokens_per_s is None


def test_longer_pulls_that_were_quicker_give_no_rate() -> None:
    meter = fit((500, 0.03), (2000, 0.02), (4000, 0.01))
    assert meter.latency_ms == pytest.approx(20.0)
    assert meter.tokens_per_s is None


def test_old_pulls_are_forgotten() -> None:
    meter = fit(*((length, 10 * take(length)) for length in (500, 1000, 2000)))
    for _ in range(16):
        for length in (500, 2000):
            meter.add(length, take(length))
    assert meter.latency_ms == pytest.approx(8.0)
