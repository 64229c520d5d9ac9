"""When this worker's job ends, as Slurm says: told to everybody, and acted on if neither head nor Slurm says a word.

The head knows it, too, from the queue. The agent's own knowledge is for the time in which there is no head.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import suppress

log = logging.getLogger(__name__)

NOTICE_S = 10.0
"""Before it has to be gone, a worker that nobody told begins to leave."""
_REFRESH_S = 600.0  # time limits can be changed (scontrol update)
_RETRY_S = 30.0  # the controller may be away for a moment
_TIMEOUT_S = 20.0


async def job_ends(job_id: str | None, *, refresh_s: float = _REFRESH_S) -> AsyncIterator[float]:
    """Yield the Unix time at which Slurm ends a job, whenever it is another; nothing outside of a job."""
    last: float | None = None
    while job_id is not None:
        end = await job_end(job_id)
        if end is not None and end != last:
            last = end
            yield end
        await asyncio.sleep(_RETRY_S if end is None and last is None else refresh_s)


async def job_end(job_id: str) -> float | None:
    """Ask Slurm once, or take what newer ones put into the environment; None if neither says."""
    asked = await _ask(job_id)
    return _seconds(os.environ.get("SLURM_JOB_END_TIME", "")) if asked is None else asked


async def _ask(job_id: str) -> float | None:
    try:
        process = await asyncio.create_subprocess_exec(
            *("squeue", "--noheader", f"--jobs={job_id}", "--format=%e"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=os.environ | {"SLURM_TIME_FORMAT": "%s"},
        )
    except OSError:
        return None
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            out, _ = await process.communicate()
    except TimeoutError:
        log.info("Slurm does not say when the job ends")
        return None
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    return _seconds(out.decode(errors="replace").strip())


def _seconds(text: str) -> float | None:
    return float(text) if text.isdigit() else None  # "NONE", "Unknown": no limit
