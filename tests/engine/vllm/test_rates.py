"""Prefill and decode rates from the times of steps, without an engine."""

from __future__ import annotations

import pytest

from hpcserve.engine.vllm.core import Prefilled
from hpcserve.engine.vllm.load import LoadMeter, RateMeter
from hpcserve.types import RequestId


def test_a_prefill_counts_from_its_arrival_over_all_its_steps() -> None:
    rates = RateMeter()
    rates.begin(10.0)
    rates.step(10.5, computed=0, generated=0, is_busy=True)  # the first chunk of a long prompt
    rates.step(11.0, computed=2000, generated=1, is_busy=True)
    assert rates.prefill_tokens_per_s == pytest.approx(2000.0)


def test_decode_steps_count_their_tokens() -> None:
    rates = RateMeter()
    rates.begin(0.0)
    rates.step(1.0, computed=100, generated=4, is_busy=True)
    rates.step(1.1, computed=0, generated=4, is_busy=True)
    assert rates.decode_tokens_per_s == pytest.approx(40.0)


def test_idle_time_does_not_count() -> None:
    rates = RateMeter()
    rates.begin(0.0)
    rates.step(1.0, computed=1000, generated=1, is_busy=False)
    rates.begin(500.0)
    rates.step(501.0, computed=1000, generated=1, is_busy=False)
    assert rates.prefill_tokens_per_s == pytest.approx(1000.0)


def test_a_pulled_prompt_is_no_prefill() -> None:
    rates = RateMeter()
    rates.begin(0.0)
    rates.step(5.0, computed=1, generated=1, is_busy=True)
    assert rates.prefill_tokens_per_s is None


def test_requests_wait_until_they_are_closed() -> None:
    meter = LoadMeter()
    meter.open(RequestId("a"), 100)
    meter.open(RequestId("b"), 50)
    assert (meter.report().num_waiting, meter.report().waiting_tokens) == (2, 150)
    meter.prefilled(RequestId("a"), Prefilled(cached=32, pulled=64))
    report = meter.report()
    assert (report.waiting_tokens, report.prompt_tokens_total) == (50, 100)
    assert (report.cached_tokens_total, report.pulled_tokens_total) == (32, 64)
    meter.close(RequestId("a"))
    meter.close(RequestId("b"))
    assert (meter.report().num_waiting, meter.report().waiting_tokens) == (0, 0)
