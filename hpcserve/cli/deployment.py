"""Which deployment a command means."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from hpcserve.errors import DeploymentError, did_you_mean

if TYPE_CHECKING:
    from hpcserve.state import StateDir


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from hpcserve.state import StateDir

    return [state.name for state in StateDir.all() if state.name.startswith(incomplete)]


def name_option(command: Any) -> Any:
    """Add `--name` to a command that works on a deployment that was started before."""
    text = "Which deployment; not needed where there is one only."
    return click.option("--name", envvar="HPCSERVE_NAME", shell_complete=_complete, help=text)(command)


def find(name: str | None) -> StateDir:
    """Return the deployment called `name`, or the only one. Raises `DeploymentError`, naming those there are."""
    from hpcserve.state import StateDir

    states = {state.name: state for state in StateDir.all()}
    if name is not None:
        if name not in states:
            raise DeploymentError(f"no deployment called {name!r}{did_you_mean(name, states)}")
        return states[name]
    if not states:
        raise DeploymentError("no deployment was started here; `hpcserve up` starts one")
    if len(states) > 1:
        raise DeploymentError(f"there are several deployments ({', '.join(states)}); say which with --name")
    return next(iter(states.values()))
