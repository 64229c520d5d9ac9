"""`hpcserve completion`: what a shell needs to complete commands, options and names of deployments."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_WHERE = {
    "bash": 'eval "$(hpcserve completion bash)" in ~/.bashrc',
    "zsh": 'eval "$(hpcserve completion zsh)" in ~/.zshrc',
    "fish": "hpcserve completion fish > ~/.config/fish/completions/hpcserve.fish",
}


@click.command("completion", epilog="\b\n" + "\n".join(_WHERE.values()))
@click.argument("shell", type=click.Choice(list(_WHERE)))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print a completion script for bash, zsh or fish."""
    completion = get_completion_class(shell)
    assert completion is not None
    click.echo(completion(ctx.find_root().command, {}, "hpcserve", "_HPCSERVE_COMPLETE").source())
