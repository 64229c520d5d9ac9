"""What `up` does where a deployment of that name has been before. Decides; starts nothing."""

from __future__ import annotations

import json
from collections.abc import Collection
from enum import Enum
from typing import Any

from hpcserve.config.models import Config
from hpcserve.config.schema import leaves
from hpcserve.errors import DeploymentError
from hpcserve.serve.leftovers import Leftovers
from hpcserve.state import StateDir


class Start(Enum):
    """How a head begins."""

    ANEW = "anew"  # nothing is left: a new identity, and no job
    ADOPTING = "adopting"  # jobs and frontends of a head that died go on


def decide(left: Leftovers, state: StateDir) -> Start:
    """Return how to begin. Raises `DeploymentError` where a head runs, or where what is left cannot be taken over."""
    name = state.name
    if left.head_is_alive:
        raise DeploymentError(
            f"deployment {name!r} is already running; "
            f"use it (hpcserve status --name {name}), end it (hpcserve down --name {name}), or choose another --name"
        )
    if not left.description:
        return Start.ANEW
    if state.read_config().cluster.kind == "mpi":  # its ranks end with their head
        raise DeploymentError(
            f"deployment {name!r} was not ended in good order: {left.description} still there; "
            f"run hpcserve down --name {name} first"
        )
    return Start.ADOPTING


def refuse_other_settings(recorded: Config, wanted: Config, given: Collection[str] | None) -> None:
    """Raise `DeploymentError` where `wanted` asks for something else than what runs, naming it.

    `given` are the keys that somebody has set, dotted; None: all whose values are no defaults. What nobody set stays as
    it runs.
    """
    differing = differences(recorded, wanted, given)
    if differing:
        raise DeploymentError(
            f"deployment {recorded.name!r} runs with other settings, and its head is gone: {'; '.join(differing)}. "
            f"To have it back as it is, run hpcserve up --name {recorded.name} without these; "
            f"to change them, run hpcserve down --name {recorded.name} first"
        )


def differences(recorded: Config, wanted: Config, given: Collection[str] | None) -> list[str]:
    """Return one phrase for each key that was given and runs with another value."""
    default = Config()
    found = []
    for path, leaf in leaves().items():
        new, old = _value(wanted, path), _value(recorded, path)
        is_given = new != _value(default, path) if given is None else _is_given(leaf.dotted, given)
        is_open = leaf.dotted == "cluster.kind" and new == "auto"
        if is_given and new != old and not is_open:
            found.append(f"{leaf.dotted} is {_text(old)}, not {_text(new)}")
    return found


def _is_given(dotted: str, given: Collection[str]) -> bool:
    return any(key == dotted or key.startswith(f"{dotted}.") for key in given)


def _value(config: Config, path: tuple[str, ...]) -> Any:
    value: Any = config
    for name in path:
        value = getattr(value, name)
    return value


def _text(value: object) -> str:
    return json.dumps(value, default=str)
