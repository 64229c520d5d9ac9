"""Programs run to their end beside the load, without holding it up."""

from __future__ import annotations

import asyncio
import subprocess
from contextlib import suppress


async def run(*command: str, env: dict[str, str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run a program and return what it said. One that takes too long is killed; its exit code is 124 then."""
    process = await asyncio.create_subprocess_exec(
        *command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await process.communicate()
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        return subprocess.CompletedProcess(command, 124, "", f"not done after {timeout_s:g} s")
    except asyncio.CancelledError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    return subprocess.CompletedProcess(command, process.returncode or 0, out.decode(), err.decode())
