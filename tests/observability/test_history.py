"""The history says what happened in the seconds before each point, whatever workers and frontends come and go."""

from __future__ import annotations

import pytest

from hpcserve.observability.history import LATENCY_WINDOW_S, History, Point
from hpcserve.observability.metrics import ServiceMetrics
from hpcserve.observability.quantiles import quantile
from hpcserve.types import LoadReport, Phase, Role, Status, Traffic, WorkerId, WorkerInfo, WorkerState

A, B = WorkerId("both-0-a"), WorkerId("both-1-b")


def status(num_waiting: int = 0, /, **loads: LoadReport) -> Status:
    named = {{"a": A, "b": B}[name]: load for name, load in loads.items()}
    workers = tuple(
        WorkerInfo(worker=each, pool="both", role=Role.BOTH, state=WorkerState.READY)
        for each in (A, B)
        if each in named
    )
    return Status(
        name="t", phase=Phase.SERVING, model="m", mode="aggregated", policy="kv", cluster="local",
        workers=workers, load=named, num_waiting=num_waiting,
    )  # fmt: skip


def last_of(*moments: tuple[float, Status, Traffic]) -> Point:
    history = History(10)
    for at, now, traffic in moments:
        history.take(now, traffic, at)
    return history.points[-1]


def counted(**observed_s: float) -> Traffic:
    metrics = ServiceMetrics(status)
    for name, seconds in observed_s.items():
        getattr(metrics, name).observe(seconds)
    return metrics.traffic()


def test_rates_are_those_of_the_last_seconds() -> None:
    point = last_of(
        (100.0, status(a=LoadReport(generated_tokens_total=1_000, prompt_tokens_total=50)), Traffic(finished=7)),
        (102.0, status(a=LoadReport(generated_tokens_total=1_600, prompt_tokens_total=150)), Traffic(finished=9)),
    )
    assert (point.generated_tokens_per_s, point.prompt_tokens_per_s, point.finished_per_s) == (300.0, 50.0, 1.0)


def test_what_was_long_ago_is_no_rate_of_now() -> None:
    point = last_of(
        (100.0, status(a=LoadReport(generated_tokens_total=0)), Traffic()),
        (101.0, status(a=LoadReport(generated_tokens_total=5_000)), Traffic()),
        (110.0, status(a=LoadReport(generated_tokens_total=5_000)), Traffic()),
    )
    assert point.generated_tokens_per_s == 0.0


def test_latencies_are_those_of_the_window_and_none_without_requests() -> None:
    slow, both = counted(ttft=3.0), counted(ttft=3.0) + counted(ttft=0.015, itl=0.006)
    assert last_of((100.0, status(), Traffic()), (101.0, status(), slow)).ttft_p50_ms == pytest.approx(3750)
    point = last_of((100.0, status(), Traffic()), (101.0, status(), slow), (102.0 + LATENCY_WINDOW_S, status(), both))
    assert point.ttft_p50_ms is None, "the earlier counts are not in the window, so that nothing is known of it"
    later = last_of((100.0, status(), slow), (101.0, status(), both))
    assert later.ttft_p50_ms == 15.0
    assert later.itl_p90_ms == pytest.approx(9.5)


def test_a_worker_counts_from_where_it_is_first_seen_and_may_go() -> None:
    point = last_of(
        (100.0, status(a=LoadReport(generated_tokens_total=10)), Traffic()),
        (
            101.0,
            status(a=LoadReport(generated_tokens_total=20), b=LoadReport(generated_tokens_total=9_000)),
            Traffic(),
        ),
        (102.0, status(b=LoadReport(generated_tokens_total=9_010)), Traffic()),
    )
    assert point.generated_tokens_per_s == 10.0


def test_a_head_that_counts_anew_gives_no_negative_rates() -> None:
    point = last_of((100.0, status(), Traffic(finished=50)), (101.0, status(), Traffic(finished=1)))
    assert point.finished_per_s == 0.0


def test_load_is_that_of_now() -> None:
    point = last_of(
        (
            100.0,
            status(
                3,
                a=LoadReport(num_running=2, num_waiting=1, kv_usage=0.5),
                b=LoadReport(num_running=1, kv_usage=0.25),
            ),
            Traffic(),
        )
    )
    assert (point.running, point.waiting, point.kv_usage) == (3, 4, 0.375)
    assert last_of((1.0, status(), Traffic())).kv_usage is None


def test_prefix_hits_are_a_share_of_what_was_not_pulled() -> None:
    empty = LoadReport()
    full = LoadReport(prompt_tokens_total=300, pulled_tokens_total=100, cached_tokens_total=50)
    assert last_of((1.0, status(a=empty), Traffic()), (2.0, status(a=full), Traffic())).prefix_hits == 0.25


def test_it_is_bounded() -> None:
    history = History(10)
    for second in range(100):
        history.take(status(), Traffic(), float(second))
    assert [point.at for point in history.points] == [float(second) for second in range(90, 100)]
    assert len(history._marks) <= LATENCY_WINDOW_S + 1


def test_quantiles_are_prometheus_own() -> None:
    assert quantile(0.5, (0, 10, 0), (1.0, 3.0)) == 2.0
    assert quantile(0.9, (5, 5, 0), (1.0, 3.0)) == pytest.approx(2.6)
    assert quantile(0.5, (0, 0, 4), (1.0, 3.0)) == 3.0, "beyond the last bound no more is known"
    assert quantile(0.5, (), (1.0, 3.0)) is None
