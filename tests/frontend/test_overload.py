"""What clients are told when too many wait, and what the metrics show of it."""

from __future__ import annotations

import pytest
from fake_backend import FakeBackend, fail_after, ready_status

from hpcserve.errors import Overloaded, RateLimited
from hpcserve.observability.metrics import DispatchCounts, ServiceMetrics

REFUSALS = {
    "too many wait": (Overloaded("9 requests wait", retry_after_s=7.2), 503, "overloaded", "8"),
    "too many of one tenant wait": (RateLimited("9 of yours", retry_after_s=2.0), 429, "rate_limit_exceeded", "2"),
}


@pytest.mark.parametrize("name", REFUSALS)
@pytest.mark.parametrize("body", [{}, {"stream": True}, {"n": 3}, {"n": 3, "stream": True}])
async def test_a_refusal_is_a_status_with_the_time_to_try_again(make_server, name, body):
    error, status, code, retry_after = REFUSALS[name]
    server = await make_server(FakeBackend(fail_after([], error)))
    sent = {"model": "mock", "prompt": "hi", **body}
    async with server.http.post(server.url + "/v1/completions", json=sent) as response:
        answer = await response.json()
        assert (response.status, response.headers["Retry-After"]) == (status, retry_after)
    assert (answer["error"]["code"], answer["error"]["message"]) == (code, error.message)
    await server.backend.until(lambda: server.backend.running == 0)
    assert (server.metrics.inflight, server.metrics.queued) == (0, 0)


async def test_the_queue_is_in_the_metrics():
    counts = DispatchCounts()
    counts.overloaded = 3
    for seconds in (0.0005, 30.0, 400.0):
        counts.queue.observe(seconds)
    lines = ServiceMetrics(lambda: ready_status(num_waiting=17), counts).render().decode().splitlines()
    for line in (
        "hpcserve_waiting_requests 17.0",
        "hpcserve_overloaded_total 3.0",
        'hpcserve_queue_seconds_bucket{le="0.001"} 1.0',
        'hpcserve_queue_seconds_bucket{le="40.0"} 2.0',
        'hpcserve_queue_seconds_bucket{le="640.0"} 3.0',
        "hpcserve_queue_seconds_count 3.0",
    ):
        assert line in lines, line
