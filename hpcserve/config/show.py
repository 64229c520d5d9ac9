"""A loaded configuration as YAML that says where each value came from. Loading that text gives the same again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import yaml

from hpcserve.config.load import DEFAULT, LoadedConfig

_COMMENT_COLUMN = 56


def as_yaml(loaded: LoadedConfig) -> str:
    """Return every key with its value, and a comment where that is not the default."""
    values = loaded.config.model_dump(mode="json")
    return "\n".join(_lines(values, (), loaded.origins)) + "\n"


def as_json(loaded: LoadedConfig) -> dict[str, Any]:
    """Return `config` and `origins`, the latter by dotted key."""
    return {"config": json.loads(loaded.config.model_dump_json()), "origins": loaded.origins}


def _lines(values: dict[str, Any], above: tuple[str, ...], origins: dict[str, str]) -> Iterator[str]:
    for key, value in values.items():
        path = (*above, key)
        indent = "  " * len(above)
        if isinstance(value, dict) and value:
            yield f"{indent}{_scalar(key)}:"
            yield from _lines(value, path, origins)
        else:
            yield _commented(f"{indent}{_scalar(key)}: {_scalar(value)}", origins.get(".".join(path), DEFAULT))


def _commented(line: str, origin: str) -> str:
    return line if origin == DEFAULT else f"{line:<{_COMMENT_COLUMN}}  # {origin}"


def _scalar(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True)
    return text.removesuffix("...\n").strip()
