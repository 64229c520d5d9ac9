"""Words for what is wrong with a setting: one line each, with key, value, place, and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from hpcserve.config.schema import Leaf, leaf_of, leaves, sections
from hpcserve.config.settings import Setting, env_name
from hpcserve.errors import did_you_mean


def unknown_key(setting: Setting) -> str:
    """Say that there is no such key, and which one may have been meant."""
    if setting.origin.startswith("$"):
        names = map(env_name, leaves())
        near = difflib.get_close_matches(setting.origin[1:], names, n=1, cutoff=0.6)
        hint = f"; did you mean {near[0]!r}?" if near else "; `hpcserve config show` lists the keys"
        return f"{setting.origin}: no such setting{hint}"
    return f"{setting.dotted} ({setting.origin}): unknown key{_nearest_key(setting.path)}"


def not_a_value(setting: Setting) -> str:
    """Say that a section was given a value."""
    keys = ", ".join(sections()[setting.path])
    return f"{setting.dotted} = {shown(setting.value)} ({setting.origin}): this is a section; it holds: {keys}"


def not_a_truth_value(setting: Setting) -> str:
    """Say that true or false makes no sense here."""
    return f"{setting.dotted} = {shown(setting.value)} ({setting.origin}): must be a number"


def wrong_values(error: ValidationError, origins: Mapping[str, str]) -> list[str]:
    """Return a line for each value that pydantic refused."""
    return [_wrong_value(details, origins) for details in error.errors(include_url=False)]


def shown(value: Any) -> str:
    """Return a value as a message shows it: short, on one line."""
    text = repr(str(value)) if not isinstance(value, bool | int | float | list | dict | None) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _wrong_value(details: ErrorDetails, origins: Mapping[str, str]) -> str:
    path = tuple(map(str, details["loc"]))
    dotted = ".".join(path)
    leaf = leaf_of(path) or leaf_of(path[:-1])  # an element of a list has its position last
    origin = origins.get(dotted) or (origins.get(leaf.dotted) if leaf else None) or "default"
    return f"{dotted} = {shown(details['input'])} ({origin}): {_reason(details, leaf)}"


def _reason(details: ErrorDetails, leaf: Leaf | None) -> str:
    if details["type"] == "literal_error" and leaf:
        return f"not one of its values{did_you_mean(str(details['input']), leaf.choices)}"
    if details["type"] == "string_pattern_mismatch" and leaf and leaf.description:
        return f"must be {leaf.description.partition(';')[0]}"
    message = (
        details["msg"]
        .replace("Input should be", "must be")
        .replace("a valid ", "a ")
        .replace("a integer", "a whole number")
        .split(", unable")[0]
    )
    return message[0].lower() + message[1:]


def _nearest_key(path: Sequence[str]) -> str:
    """Suggest a key of the same section, else one of the same name elsewhere, else list the section's keys."""
    depth = next(depth for depth in range(len(path)) if (*path[: depth + 1],) not in sections())
    word, siblings = path[depth], sections()[tuple(path[:depth])]
    if "." in word:
        return "; keys are nested: write one level a line"
    if difflib.get_close_matches(word, siblings, cutoff=0.6):
        return did_you_mean(word, siblings)
    by_name = {leaf.path[-1]: leaf.dotted for leaf in reversed(leaves().values())}
    elsewhere = difflib.get_close_matches(word, by_name, n=1, cutoff=0.8)
    return f"; did you mean {by_name[elsewhere[0]]!r}?" if elsewhere else did_you_mean(word, siblings)
