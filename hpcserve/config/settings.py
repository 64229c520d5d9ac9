"""One value that somebody wrote, and where: read from a YAML text, from `--set` and from the environment.

Knows nothing of which keys exist; `schema.py` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import yaml

from hpcserve.config.yaml_text import compose, plain_value, text_value
from hpcserve.errors import ConfigError

ENV_PREFIX = "HPCSERVE_"
NOT_SETTINGS = frozenset({"HPCSERVE_CONFIG", "HPCSERVE_STATE_DIR", "HPCSERVE_DEBUG"})
"""Variables of hpcserve that are no keys of the configuration."""


@dataclass(frozen=True)
class Setting:
    """A leaf value, before anybody has checked it."""

    path: tuple[str, ...]
    value: Any
    origin: str  # for people: "configs/local.yaml:4", "--port", "$HPCSERVE_NAME"
    text: Any = None  # the same with every scalar as it was written, for keys that hold text; None: as `value`

    @property
    def dotted(self) -> str:
        """The key as people write it in `--set`."""
        return ".".join(self.path)


def from_yaml(text: str, label: str) -> list[Setting]:
    """Flatten the mapping in `text` into its leaves, each with `label:line`.

    Raises `ConfigError`, naming the line, for bad YAML, repeated keys and anything but a mapping.
    """
    root = compose(text, label)
    if root is None:
        return []
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{label}:{_line(root)}: keys with values are expected, such as `name: demo`")
    return list(_leaves(root, (), label))


def from_assignment(assignment: str) -> list[Setting]:
    """Read one `--set a.b=value`; the value is YAML. Raises `ConfigError`."""
    key, equals, value = assignment.partition("=")
    if not equals or not all(key.strip().split(".")):
        raise ConfigError(f"--set {assignment}: write it as --set section.key=value")
    return [
        replace(setting, origin="--set")
        for setting in _from_text(tuple(key.strip().split(".")), value, f"--set {assignment}")
    ]


def from_environment(environ: Mapping[str, str]) -> list[Setting]:
    """Read `HPCSERVE_SECTION__KEY=value`, two underscores between levels; empty ones count as unset."""
    names = sorted(name for name in environ if name.startswith(ENV_PREFIX) and name not in NOT_SETTINGS)
    return [
        setting
        for name in names
        if environ[name].strip()
        for setting in _from_text(env_path(name), environ[name], f"${name}")
    ]


def env_path(name: str) -> tuple[str, ...]:
    """Return the key that a variable sets."""
    return tuple(name.removeprefix(ENV_PREFIX).lower().split("__"))


def env_name(path: Iterable[str]) -> str:
    """Return the variable that sets a key."""
    return ENV_PREFIX + "__".join(path).upper()


def _from_text(path: tuple[str, ...], text: str, origin: str) -> list[Setting]:
    node = compose(text, origin)
    if node is None:
        return [Setting(path, None, origin)]
    return [replace(setting, origin=origin) for setting in _leaves(node, path, origin)]


def _leaves(node: yaml.Node, path: tuple[str, ...], label: str) -> Iterator[Setting]:
    if isinstance(node, yaml.MappingNode) and node.value and all(_is_word(key) for key, _ in node.value):
        for key, child in node.value:
            yield from _leaves(child, (*path, str(key.value)), label)
    else:
        yield Setting(path, plain_value(node), f"{label}:{_line(node)}", text_value(node))


def _is_word(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
