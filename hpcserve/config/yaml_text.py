"""YAML as people expect it: the core schema of YAML 1.2, with repeated and recursive keys refused.

PyYAML's own rules are those of YAML 1.1, where `auth: off` is false and `walltime: 4:00:00` is the number 14400.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from hpcserve.errors import ConfigError


class CoreLoader(yaml.SafeLoader):
    """Builds values by YAML 1.2's core schema (yaml.org/spec/1.2.2, section 10.3.2), merge keys added."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own type


class TextLoader(yaml.BaseLoader):
    """Builds every scalar as the text that was written."""


for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", list("-+0123456789")),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", list("-+.0123456789")),
    ("float", r"^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", list("-+.")),
    ("merge", r"^<<$", ["<"]),
):
    CoreLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


def _int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    return int(text) if text.lstrip("+-").isdigit() else int(text, 0)  # 010 is ten, not eight


CoreLoader.add_constructor("tag:yaml.org,2002:int", _int)


def compose(text: str, label: str) -> yaml.Node | None:
    """Parse `text` into nodes with positions, merge keys applied. Raises `ConfigError` that names `label` and the line.

    None stands for a text without a document.
    """
    try:
        loader = CoreLoader(text)
        root = loader.get_single_node()
        if root is not None:
            _check(loader, root, ())
            loader.construct_document(root)  # values that cannot be built are found here, where the line is known
        return root
    except yaml.MarkedYAMLError as err:
        mark = err.problem_mark or err.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{label}{line}: not valid YAML: {err.problem or err.context}") from err
    except (yaml.YAMLError, ValueError) as err:
        raise ConfigError(f"{label}: not valid YAML: {' '.join(str(err).split())}") from err


def plain_value(node: yaml.Node) -> Any:
    """Return what the node stands for: a number, a text, a truth value, None, a list or a dict."""
    return CoreLoader("").construct_document(node)


def text_value(node: yaml.Node) -> Any:
    """Return the same with every scalar as written; None for null."""
    if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null":
        return None
    return TextLoader("").construct_document(node)


def _check(loader: CoreLoader, node: yaml.Node, above: tuple[int, ...]) -> None:
    """Refuse repeated and recursive keys, and put merged mappings in place."""
    if id(node) in above:
        raise yaml.MarkedYAMLError(problem="a node that holds itself", problem_mark=node.start_mark)
    inside = (*above, id(node))
    if isinstance(node, yaml.SequenceNode):
        for child in node.value:
            _check(loader, child, inside)
    elif isinstance(node, yaml.MappingNode):
        _check_unique(node)
        for key, child in node.value:
            _check(loader, key, inside)
            _check(loader, child, inside)
        loader.flatten_mapping(node)
        node.value = list({_identity(key): (key, child) for key, child in node.value}.values())  # own keys come last


def _check_unique(node: yaml.MappingNode) -> None:
    lines: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        first = lines.get(_identity(key))
        if first is not None:
            problem = f"key {key.value!r} is repeated; it was first on line {first + 1}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
        lines[_identity(key)] = key.start_mark.line


def _identity(key: yaml.Node) -> tuple[str, str]:
    return key.tag, str(key.value)
