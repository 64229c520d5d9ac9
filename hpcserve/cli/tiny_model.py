"""`hpcserve tiny-model`: a model of a few megabytes, made on the spot."""

from __future__ import annotations

from pathlib import Path

import click

from hpcserve.errors import HpcserveError


@click.command("tiny-model")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
def command(directory: Path) -> None:
    """Make a small model to try things out with.

    Writes a Llama with random weights and its tokenizer to DIRECTORY. It answers nonsense, quickly, and needs no GPU.
    """
    from hpcserve.engine.tiny_model import make_tiny_model

    try:
        make_tiny_model(directory)
    except ModuleNotFoundError as err:
        raise HpcserveError(f"making a model needs {err.name}: pip install 'hpcserve[cpu]' (or [gpu])") from err
    except OSError as err:
        raise HpcserveError(f"cannot write {directory}: {err.strerror or err}") from err
    click.echo(f"{directory} is ready: hpcserve up --cluster local --model {directory}", err=True)
