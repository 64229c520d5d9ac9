"""Standard streams whose other side may go away while a deployment lives on: a closed terminal, a reader that ended."""

from __future__ import annotations

import os
import sys
from io import TextIOBase
from typing import TextIO

import click


def say(text: str) -> None:
    """Print a line to standard error, if somebody is still there."""
    try:
        click.echo(text, err=True)
    except OSError:
        give_up(sys.stderr)


def give_up(stream: TextIO) -> None:
    """Send what is still written to nowhere.

    Catching the error of a write is not enough: what is in the buffer makes the interpreter fail at its last flush
    (docs.python.org/3/library/signal.html#note-on-sigpipe).
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


class LastingStderr(TextIOBase):
    """Standard error for as long as it is there, then nowhere."""

    def write(self, text: str) -> int:
        """Write, and return how much was given."""
        try:
            sys.stderr.write(text)
        except OSError:
            give_up(sys.stderr)
        return len(text)

    def flush(self) -> None:
        """Flush what was written."""
        try:
            sys.stderr.flush()
        except OSError:
            give_up(sys.stderr)

    def isatty(self) -> bool:
        """Return whether it is a terminal."""
        return sys.stderr.isatty()

    def fileno(self) -> int:
        """Return its file descriptor; the size of the terminal is asked for with it."""
        return sys.stderr.fileno()
