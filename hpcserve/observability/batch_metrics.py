"""Prometheus families of the batches that came over the API, of all frontends: read from where they are kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily, Metric

STATUSES = ("validating", "in_progress", "finalizing", "cancelling", "completed", "failed", "expired", "cancelled")


def batch_families(by_status: Mapping[str, int], total: int, completed: int, failed: int) -> Iterator[Metric]:
    """Yield how many batches there are, and the requests of those that are not finished."""
    batches = GaugeMetricFamily("hpcserve_batches", "Batches of the API.", labels=("status",))
    for status in STATUSES:
        batches.add_metric((status,), by_status.get(status, 0))
    yield batches
    requests = GaugeMetricFamily("hpcserve_batch_requests", "Requests of unfinished batches.", labels=("state",))
    for state, count in (("waiting", total - completed - failed), ("completed", completed), ("failed", failed)):
        requests.add_metric((state,), count)
    yield requests
