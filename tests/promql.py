"""As much of PromQL as it takes to see which metrics and labels an expression names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

FUNCTIONS = {"rate", "increase", "histogram_quantile", "vector", "time"}
AGGREGATIONS = {"sum", "max", "min", "avg", "count", "topk"}
KEYWORDS = {"and", "or", "unless", "bool", "offset"}
_GROUPING = re.compile(r"\b(by|without|on|ignoring|group_left|group_right)\s*\(([^()]*)\)")
_SELECTOR = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)\s*(\{(?:[^"}]|"(?:[^"\\]|\\.)*")*\})?(\s*\()?')
_MATCHER = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*(=~|!~|!=|=)\s*"(?:[^"\\]|\\.)*"\s*(?:,|$)')


@dataclass(frozen=True)
class Names:
    """What an expression names: the labels of matchers by metric, and those that results are grouped by."""

    metrics: dict[str, frozenset[str]]
    grouped_by: frozenset[str]


def names_in(expression: str) -> Names:
    """Raises `ValueError` for what is not understood, or calls an unknown function."""
    _check_brackets(expression)
    grouped_by = {label.strip() for _, labels in _GROUPING.findall(expression) for label in labels.split(",")}
    rest = re.sub(r"\[[^\]]*\]", "", _GROUPING.sub(" ", expression))
    metrics: dict[str, frozenset[str]] = {}
    for name, labels in _selectors(rest):
        metrics[name] = metrics.get(name, frozenset()) | labels
    if not metrics:
        raise ValueError(f"no metric in {expression!r}")
    return Names(metrics, frozenset(grouped_by - {""}))


def _selectors(expression: str) -> Iterator[tuple[str, frozenset[str]]]:
    for name, matchers, call in _SELECTOR.findall(expression):
        if call:
            if name not in FUNCTIONS | AGGREGATIONS:
                raise ValueError(f"unknown function {name!r}")
        elif name not in KEYWORDS | AGGREGATIONS:  # an aggregation may stand before its grouping
            yield name, frozenset(_labels(matchers[1:-1]))


def _labels(matchers: str) -> Iterator[str]:
    position = 0
    while position < len(matchers.rstrip()):
        found = _MATCHER.match(matchers, position)
        if found is None:
            raise ValueError(f"wrong matchers {{{matchers}}}")
        yield found[1]
        position = found.end()


def _check_brackets(expression: str) -> None:
    open_ones = []
    pairs = {")": "(", "]": "[", "}": "{"}
    for character in re.sub(r'"(?:[^"\\]|\\.)*"', "", expression):
        if character in "([{":
            open_ones.append(character)
        elif character in pairs and (not open_ones or open_ones.pop() != pairs[character]):
            raise ValueError(f"unbalanced {character!r} in {expression!r}")
    if open_ones:
        raise ValueError(f"{open_ones[-1]!r} is not closed in {expression!r}")
