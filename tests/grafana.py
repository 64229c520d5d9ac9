"""The shipped Grafana dashboard, and which of its metrics and labels nobody exports."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.promql import names_in

DASHBOARD = Path(__file__).parents[1] / "configs" / "grafana-dashboard.json"
OF_PROMETHEUS = {"job", "instance"}  # labels that are added when scraping
_LABEL_VALUES = re.compile(r"label_values\((.*), (\w+)\)")
_VARIABLE = re.compile(r"\$\{?(\w+)\}?")

Exported = dict[str, set[str]]
"""Labels by the name of a sample, such as `x_bucket`; also of families without samples, by what their type promises."""


def dashboard() -> dict[str, Any]:
    return dict(json.loads(DASHBOARD.read_text()))


def panels(of: dict[str, Any]) -> list[dict[str, Any]]:
    """All panels, those of collapsed rows too."""
    return [each for panel in of["panels"] for each in (panel, *panel.get("panels", []))]


def expressions(of: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield where an expression stands, and the expression; label_values() as the selector in it, grouped."""
    for panel in panels(of):
        for target in panel.get("targets", []):
            yield f"{panel['title']} {target['refId']}", target["expr"]
    for variable in of["templating"]["list"]:
        if variable["type"] == "query":
            found = _LABEL_VALUES.fullmatch(variable["query"]["query"])
            assert found, variable["query"]
            yield f"variable {variable['name']}", f"sum by ({found[2]}) ({found[1]})"


def variables_in(text: str) -> set[str]:
    return set(_VARIABLE.findall(text))


def exported(text: str) -> Exported:
    """Return what a scrape has."""
    found: Exported = {}
    for family in text_string_to_metric_families(text):
        names = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
        for suffix in names:
            found.setdefault(family.name + suffix, set())
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def wrong_names(of: dict[str, Any], known: Exported) -> list[str]:
    """Return a line for every metric that is not exported, and for every label that its metric does not have."""
    wrong = []
    for place, expression in expressions(of):
        names = names_in(expression)
        if missing := sorted(names.metrics.keys() - known.keys()):
            wrong += [f"{place}: {metric} is not exported" for metric in missing]
            continue
        for metric, matched in names.metrics.items():
            unknown = sorted(matched - known[metric] - OF_PROMETHEUS)
            wrong += [f"{place}: {metric} has no label {label}" for label in unknown]
        labels = OF_PROMETHEUS.union(*(known[metric] for metric in names.metrics))
        wrong += [f"{place}: nothing has the label {label}" for label in sorted(names.grouped_by - labels)]
    return wrong
