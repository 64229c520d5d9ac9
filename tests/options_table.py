"""The tables of docs/configuration.md, made from the models.

python -m tests.options_table --write    # after a change of hpcserve/config/models.py
"""

from __future__ import annotations

import json
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from hpcserve.config.models import Config, Section
from hpcserve.config.schema import Leaf, leaves

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
BEGIN, END = "<!-- options: made by tests/options_table.py -->\n", "<!-- end of options -->"
_WORDS: dict[Any, str] = {int: "whole number", float: "number", str: "text", Path: "path", bool: "true or false"}
_WORDS |= {list[str]: "list of text", dict[str, Any]: "keys and values"}


def tables() -> str:
    """Return one table a section, every option in it, in the order of the models."""
    return "\n".join(line for section in _sections() for line in (*_table(section), "")) + "\n"


def with_tables(page: str) -> str:
    """Return the page with the tables in it brought up to date."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + "\n" + tables() + END + after


def _sections() -> list[tuple[str, list[Leaf]]]:
    found: dict[str, list[Leaf]] = {}
    for leaf in leaves().values():
        found.setdefault(".".join(leaf.path[:-1]), []).append(leaf)
    return sorted(found.items(), key=lambda item: item[0] != "")  # those of no section first


def _table(section: tuple[str, list[Leaf]]) -> Iterator[str]:
    name, options = section
    model = _model(name)
    yield f"### {name or 'At the top'}"
    yield ""
    yield (model.__doc__ or "").strip().partition("\n")[0]
    yield ""
    yield "| option | takes | default | |"
    yield "|---|---|---|---|"
    for leaf in options:
        default = model.model_fields[leaf.path[-1]].get_default(call_default_factory=True)
        yield f"| `{leaf.dotted}` | {_takes(leaf)} | `{_shown(default)}` | {(leaf.description or '').strip()} |"


def _model(section: str) -> type[Section]:
    model: Any = Config
    for name in filter(None, section.split(".")):
        model = model.model_fields[name].annotation
    return model


def _takes(leaf: Leaf) -> str:
    kinds = [kind for kind in leaf.types if kind is not type(None)]
    return " or ".join(
        ", ".join(f"`{word}`" for word in typing.get_args(kind)) if typing.get_origin(kind) is Literal else _WORDS[kind]
        for kind in kinds
    )


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(with_tables(PAGE.read_text()))
    else:
        sys.stdout.write(tables())
