"""`hpcserve logs`: the log files of a deployment, read where they are written. Asks no process."""

from __future__ import annotations

import time
from pathlib import Path

import click

from hpcserve.cli.deployment import find, name_option
from hpcserve.cli.log_files import Follower
from hpcserve.errors import DeploymentError, did_you_mean
from hpcserve.observability.log_files import tail

_POLL_S = 0.25


@click.command("logs")
@click.argument("which", metavar="[WORKER|head|frontend]", required=False)
@name_option
@click.option("-f", "--follow", is_flag=True, help="Go on printing what is added, until Ctrl-C.")
@click.option(
    "-n", "--lines", "num_lines", type=click.IntRange(min=0), default=50, show_default=True, help="From the end."
)
def command(which: str | None, name: str | None, follow: bool, num_lines: int) -> None:
    """Print or follow the logs of the head, the frontend and the workers.

    WORKER is the name of a worker, or its beginning, such as decode-3. Without an argument all logs are shown, every
    line with the name of its log.
    """
    folder = find(name).logs
    files = _choose(folder, which)
    labelled = which is None
    followers = [Follower(file, from_end=True) for file in files]
    for file in files:
        for line in tail(file, num_lines):
            _print(file, line, labelled=labelled)
    if follow:
        _follow(folder if labelled else None, followers, labelled=labelled)


def _choose(folder: Path, which: str | None) -> list[Path]:
    files = {file.stem: file for file in sorted(folder.glob("*.log"))}
    if which is None:
        return list(files.values())
    chosen = [files[which]] if which in files else [file for stem, file in files.items() if stem.startswith(which)]
    if not chosen:
        raise DeploymentError(f"no log of {which!r} in {folder}{did_you_mean(which, files)}")
    if len(chosen) > 1:  # earlier lives of the same worker, or several workers
        names = ", ".join(file.stem for file in chosen)
        raise DeploymentError(f"{which!r} is the beginning of several: {names}")
    return chosen


def _follow(folder: Path | None, followers: list[Follower], *, labelled: bool) -> None:
    """Print what is added; files that appear in `folder` later are followed too."""
    while True:
        for follower in followers:
            for line in follower.new_lines():
                _print(follower.path, line, labelled=labelled)
        known = {follower.path for follower in followers}
        new = [file for file in sorted(folder.glob("*.log")) if file not in known] if folder else []
        followers += [Follower(file, from_end=False) for file in new]
        time.sleep(_POLL_S)  # the files may be on a network file system, which tells nobody of changes


def _print(file: Path, line: str, *, labelled: bool) -> None:
    click.echo(f"{file.stem} | {line}" if labelled else line)
