"""Processes of a deployment on this host: their logs, and their ends."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import BinaryIO

from hpcserve.records import Proc

_POLL_S = 0.05


def open_log(path: Path) -> BinaryIO:
    """Open a log file to append to, readable by this user only."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")


async def end_process(proc: Proc, *, grace_s: float) -> None:
    """Terminate a process of this host, and kill it if it is still there after `grace_s`."""
    for sign, bound_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 10.0)):
        if not proc.is_alive:
            return
        os.kill(proc.pid, sign)
        if await wait_for_end(proc, bound_s):
            return


async def wait_for_end(proc: Proc, timeout_s: float) -> bool:
    """Wait until a process of this host, not necessarily a child, is gone; False if `timeout_s` went by first."""
    deadline = time.monotonic() + timeout_s
    while proc.is_alive:
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(_POLL_S)
    return True
