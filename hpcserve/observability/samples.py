"""What one frontend counted, as numbers that can be sent and added to another's. Says nothing of what they mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
from prometheus_client.core import Metric


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """One line of an exposition."""

    name: str
    labels: tuple[tuple[str, str], ...]
    value: float


class Family(msgspec.Struct, frozen=True, array_like=True):
    """The lines of one metric."""

    is_gauge: bool  # what is now, and not any more when the process is gone
    samples: tuple[Sample, ...]


Samples = dict[str, Family]
"""By the name of the metric."""


def samples_of(metrics: Iterable[Metric]) -> Samples:
    """Return the numbers of metrics."""
    return {
        metric.name: Family(
            metric.type == "gauge",
            tuple(Sample(each.name, tuple(each.labels.items()), each.value) for each in metric.samples),
        )
        for metric in metrics
    }


def total(parts: Iterable[Samples]) -> Samples:
    """Return the sums of what has the same name and labels, in the order in which they first appear."""
    sums: dict[str, tuple[bool, dict[tuple[str, tuple[tuple[str, str], ...]], float]]] = {}
    for part in parts:
        for name, family in part.items():
            values = sums.setdefault(name, (family.is_gauge, {}))[1]
            for each in family.samples:
                key = each.name, each.labels
                values[key] = values.get(key, 0.0) + each.value
    return {
        name: Family(is_gauge, tuple(Sample(*key, value) for key, value in values.items()))
        for name, (is_gauge, values) in sums.items()
    }


def without_gauges(samples: Samples) -> Samples:
    """Return what stays counted when the process that counted it is gone."""
    return {name: family for name, family in samples.items() if not family.is_gauge}


def add_to(metrics: Iterable[Metric], others: Mapping[str, Family]) -> Iterable[Metric]:
    """Yield the metrics with the numbers of others added."""
    for metric in metrics:
        family = others.get(metric.name)
        if family is not None:
            both = total([samples_of([metric]), {metric.name: family}])[metric.name]
            metric.samples.clear()
            for each in both.samples:
                metric.add_sample(each.name, dict(each.labels), each.value)
        yield metric
