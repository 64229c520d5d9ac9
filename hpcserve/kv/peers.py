"""Whether a peer on this machine still lives, and what names a process for that question."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Protocol


class Process(Protocol):
    """What a description says of the process behind it."""

    @property
    def host(self) -> str: ...  # noqa: D102 - see `this_host`
    @property
    def pid(self) -> int: ...  # noqa: D102
    @property
    def started(self) -> int: ...  # noqa: D102 - see `start_time`


def this_host() -> str:
    """Return a name that no other machine has, nor another container with processes of its own."""
    try:
        names = f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}:{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        names = "unknown"
    return f"{socket.gethostname()}:{names}"


def start_time(pid: int) -> int | None:
    """Return when a process of this machine began, in ticks since boot; None if there is none, or it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def is_gone(process: Process) -> bool:
    """Whether it is known to have ended; never of a process on another machine."""
    return process.host == this_host() and start_time(process.pid) != process.started
