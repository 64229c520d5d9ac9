"""Which keys the configuration has, read off the models. Checks no values; pydantic does."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from hpcserve.config.models import Config, Section


@dataclass(frozen=True)
class Leaf:
    """One key that takes a value."""

    path: tuple[str, ...]
    types: tuple[Any, ...]  # alternatives of its annotation
    description: str | None

    @property
    def dotted(self) -> str:
        """The key as people write it."""
        return ".".join(self.path)

    @property
    def choices(self) -> tuple[str, ...]:
        """Words that it takes, where it takes nothing else."""
        return tuple(
            word for kind in self.types if typing.get_origin(kind) is Literal for word in typing.get_args(kind)
        )

    @property
    def holds_text(self) -> bool:
        """Whether scalars in its value are meant as they were written, digits included."""
        return bool(self.choices) or any(kind in (str, Path, list[str]) for kind in self.types)

    @property
    def is_path(self) -> bool:
        """Whether it names a file or directory."""
        return Path in self.types

    @property
    def is_open(self) -> bool:
        """Whether any keys may follow below it."""
        return any(typing.get_origin(kind) is dict for kind in self.types)


@cache
def leaves() -> dict[tuple[str, ...], Leaf]:
    """Return every key that takes a value, in the order of the models."""
    return {leaf.path: leaf for leaf in _walk(Config, ())}


@cache
def sections() -> dict[tuple[str, ...], tuple[str, ...]]:
    """Return the keys of every section; the empty path is the whole configuration."""
    found: dict[tuple[str, ...], dict[str, None]] = {}
    for path in leaves():
        for depth in range(len(path)):
            found.setdefault(path[:depth], {})[path[depth]] = None
    return {path: tuple(keys) for path, keys in found.items()}


def leaf_of(path: Iterable[str]) -> Leaf | None:
    """Return the key that `path` names or lies below; None where there is no such key."""
    whole = tuple(path)
    for depth in range(len(whole), 0, -1):
        leaf = leaves().get(whole[:depth])
        if leaf is not None and (leaf.is_open or depth == len(whole)):
            return leaf
    return None


def _walk(section: type[Section], above: tuple[str, ...]) -> Iterator[Leaf]:
    for name, field in section.model_fields.items():
        path = (*above, name)
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            yield from _walk(annotation, path)
        else:
            yield Leaf(path, _alternatives(annotation), field.description)


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    while typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return tuple(kind for part in typing.get_args(annotation) for kind in _alternatives(part))
    return (annotation,)
