"""How files, environment and flags become one `Config`, with the place that every value came from.

Flags win over `--set`, over `HPCSERVE_*`, over the YAML file, over the defaults. Reads the disk for the YAML file only:
whether a model or a partition exists is checked where it is used.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hpcserve.config import mistakes
from hpcserve.config.checks import contradictions
from hpcserve.config.models import Config
from hpcserve.config.pools import PoolFlags, pool_settings
from hpcserve.config.schema import leaf_of, leaves, sections
from hpcserve.config.settings import Setting, from_assignment, from_environment, from_yaml
from hpcserve.errors import ConfigError

DEFAULT = "default"


@dataclass(frozen=True)
class LoadedConfig:
    """A configuration, and where each of its values came from, by dotted key."""

    config: Config
    origins: dict[str, str]
    file: Path | None = None
    contradictions: tuple[str, ...] = ()  # one line each; what has any cannot be brought up


@dataclass
class _Merged:
    """Settings put over one another, later ones on top."""

    tree: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def load(
    *,
    file: Path | None = None,
    assignments: Sequence[str] = (),
    flags: Sequence[Setting] = (),
    pools: PoolFlags | None = None,
    environ: Mapping[str, str] | None = None,
    allow_contradictions: bool = False,
) -> LoadedConfig:
    """Put a configuration together. Raises `ConfigError` whose message has one line for each mistake.

    With `allow_contradictions`, values that are right by themselves but not together are returned with what is wrong.

    `file` is what `--config` names; without it `find_file` decides. Relative paths in any of the places are relative to
    the current directory, and become absolute here, because other processes on other hosts read them.
    """
    environ = os.environ if environ is None else environ
    file = file or find_file(environ)
    settings = read_file(file) if file else []
    settings += from_environment(environ)
    settings += [setting for assignment in assignments for setting in from_assignment(assignment)]
    settings += flags
    below, origins = _build(settings)
    if pools is not None and pools.are_given:
        below, origins = _build([*settings, *pool_settings(pools, below.pools)])
    wrong = contradictions(below, origins)
    if wrong and not allow_contradictions:
        raise ConfigError("\n".join(wrong))
    return LoadedConfig(below, origins, file, tuple(wrong))


def find_file(environ: Mapping[str, str] | None = None) -> Path | None:
    """Return `$HPCSERVE_CONFIG`, else the user's own file if it exists, else None."""
    environ = os.environ if environ is None else environ
    if environ.get("HPCSERVE_CONFIG"):
        return Path(environ["HPCSERVE_CONFIG"]).expanduser()
    return default_file() if default_file().is_file() else None


def default_file() -> Path:
    """Return where a user's own configuration is looked for."""
    return Path("~/.config/hpcserve/config.yaml").expanduser()


def read_file(file: Path) -> list[Setting]:
    """Return the settings in a YAML file. Raises `ConfigError`."""
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as err:
        raise ConfigError(f"{file}: not a text file in UTF-8") from err
    except OSError as err:
        raise ConfigError(f"configuration file {file} cannot be read: {err.strerror}") from err
    return from_yaml(text, str(file))


def _build(settings: Iterable[Setting]) -> tuple[Config, dict[str, str]]:
    merged = _Merged()
    for setting in settings:
        _put(merged, setting)
    try:
        config = Config.model_validate(merged.tree)
    except ValidationError as err:
        merged.wrong += mistakes.wrong_values(err, merged.origins)
    if merged.wrong:
        raise ConfigError("\n".join(merged.wrong))
    defaults = {leaf.dotted: DEFAULT for leaf in leaves().values() if not _is_set(leaf.dotted, merged.origins)}
    return config, defaults | merged.origins


def _put(merged: _Merged, setting: Setting) -> None:
    """Put one setting on top, or note what is wrong with it."""
    if setting.path in sections():
        if setting.value not in (None, {}):  # an empty section is fine: all its keys may be commented out
            merged.wrong.append(mistakes.not_a_value(setting))
        return
    leaf = leaf_of(setting.path)
    if leaf is None:
        merged.wrong.append(mistakes.unknown_key(setting))
    elif isinstance(setting.value, bool) and not leaf.holds_text and not leaf.is_open and bool not in leaf.types:
        merged.wrong.append(mistakes.not_a_truth_value(setting))  # pydantic would read it as 1 or 0
    else:
        value = setting.text if leaf.holds_text and setting.text is not None else setting.value
        _insert(merged, setting, _absolute(value) if leaf.is_path and isinstance(value, str) else value)


def _insert(merged: _Merged, setting: Setting, value: Any) -> None:
    """Set one key, dropping what earlier settings said of keys above and below it."""
    at = merged.tree
    for key in setting.path[:-1]:
        if not isinstance(at.get(key), dict):
            at[key] = {}
        at = at[key]
    at[setting.path[-1]] = value
    above = {".".join(setting.path[:depth]) for depth in range(1, len(setting.path))}
    for dotted in list(merged.origins):
        if dotted in above or dotted.startswith(f"{setting.dotted}."):
            del merged.origins[dotted]
    merged.origins[setting.dotted] = setting.origin


def _absolute(path: str) -> str:
    """Anchor a relative path here; one that begins with a variable is expanded on the compute node."""
    return path if path.startswith("$") else os.path.abspath(Path(path).expanduser())


def _is_set(dotted: str, origins: Mapping[str, str]) -> bool:
    return any(origin == dotted or origin.startswith(f"{dotted}.") for origin in origins)
