"""Metrics of several frontends as one exposition."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from hpcserve.head.frontends import MetricsSum
from hpcserve.observability.metrics import ServiceMetrics
from hpcserve.observability.samples import Samples
from hpcserve.types import Phase, Status


def metrics() -> ServiceMetrics:
    status = Status(name="t", phase=Phase.SERVING, model="m", mode="aggregated", policy="kv", cluster="local")
    return ServiceMetrics(lambda: status)


def numbers(exposition: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(exposition.decode())
        for sample in family.samples
        if not sample.name.startswith("process_")  # they change while one looks
    }


def busy(number: int) -> ServiceMetrics:
    made = metrics()
    made.requests["/a", 200] = number
    made.requests[f"/only-{number}", 429] = 1
    made.generation_tokens = 10 * number
    made.inflight = number
    made.ttft.observe(0.003)
    made.ttft.observe(1000 * number)
    made.tenants["alice"].requests = number
    made.tenants[f"tenant-{number}"].generated_tokens = number
    return made


def test_the_sums_are_of_counters_gauges_and_buckets_of_all() -> None:
    first, second = busy(1), busy(2)
    summed = numbers(first.render(others=second.samples()))
    assert summed == numbers(second.render(others=first.samples()))
    assert summed["hpcserve_requests_total", (("route", "/a"), ("status", "200"))] == 3
    assert summed["hpcserve_requests_total", (("route", "/only-1"), ("status", "429"))] == 1
    assert summed["hpcserve_requests_total", (("route", "/only-2"), ("status", "429"))] == 1
    assert summed["hpcserve_generation_tokens_total", ()] == 30
    assert summed["hpcserve_inflight_requests", ()] == 3
    assert summed["hpcserve_time_to_first_token_seconds_bucket", (("le", "0.005"),)] == 2
    assert summed["hpcserve_time_to_first_token_seconds_bucket", (("le", "+Inf"),)] == 4
    assert summed["hpcserve_time_to_first_token_seconds_count", ()] == 4
    assert summed["hpcserve_time_to_first_token_seconds_sum", ()] == 3000.006
    assert summed["hpcserve_tenant_requests_total", (("tenant", "alice"),)] == 3
    assert summed["hpcserve_tenant_generation_tokens_total", (("tenant", "tenant-2"),)] == 2


def test_processes_add_up_but_not_their_beginnings() -> None:
    names = {name for name in metrics().samples() if name.startswith("process_")}
    assert "process_cpu_seconds" in names
    assert "process_start_time_seconds" not in names


def test_what_the_status_says_is_not_added_up() -> None:
    first, second = metrics(), metrics()
    name = "hpcserve_waiting_requests", ()
    assert numbers(first.render(others=second.samples()))[name] == numbers(first.render())[name]
    assert not [each for each in second.samples() if "worker" in each]


def test_tenants_of_others_are_not_shown_to_tenants() -> None:
    assert b"alice" not in busy(1).render(with_tenants=False, others=busy(2).samples())


def test_the_head_keeps_counts_but_not_the_present_of_a_frontend_that_is_gone() -> None:
    book = MetricsSum()
    book.take(1, busy(1).samples())
    book.take(2, busy(2).samples())
    book.leave(1)
    seen = numbers(metrics().render(others=book.others_than(3)))
    assert seen["hpcserve_generation_tokens_total", ()] == 30
    assert seen["hpcserve_inflight_requests", ()] == 2
    book.take(1, busy(1).samples())  # it was only cut off
    assert numbers(metrics().render(others=book.others_than(2)))["hpcserve_generation_tokens_total", ()] == 10


def test_nothing_counted_is_nothing_added() -> None:
    nothing: Samples = {}
    assert numbers(busy(1).render()) == numbers(busy(1).render(others=nothing))
