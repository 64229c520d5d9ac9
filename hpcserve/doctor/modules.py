"""The module system: whether it is there, and whether what the configuration names can be loaded together."""

from __future__ import annotations

import asyncio
import shlex
import shutil
from contextlib import suppress

from hpcserve.cluster.slurm_script import setup_lines
from hpcserve.config.models import Config
from hpcserve.doctor.check import Check, good, problem, skipped

_TIMEOUT_S = 30.0


async def check_modules(config: Config, *, is_slurm: bool) -> list[Check]:
    """Run what a job would run before its worker, in a shell like a job's, on this host."""
    slurm = config.cluster.slurm
    if not is_slurm:
        return []
    if shutil.which("bash") is None:
        return [problem("modules", "there is no bash on PATH, and job scripts are for it", "PATH, or ask your site")]
    if not slurm.modules:
        return [await _system()]
    if not await _runs("type module > /dev/null 2>&1 || source /etc/profile; type module"):
        found = f"there is no `module` command here, and {', '.join(slurm.modules)} are to be loaded"
        return [problem("modules", found, "leave cluster.slurm.modules out, or a prologue that defines `module`")]
    checks: list[Check] = []
    for last, name in enumerate(slurm.modules, 1):
        some = slurm.model_copy(update={"modules": slurm.modules[:last], "prologue": []})
        if not await _runs("\n".join(setup_lines(some))):
            change = f"`module spider {shlex.quote(name)}` tells which there are; cluster.slurm.modules"
            return [*checks, problem("modules", f"{name} cannot be loaded on this host", change)]
    return [good("modules", f"{', '.join(slurm.modules)} can be loaded on this host")]


async def _system() -> Check:
    if await _runs("type module > /dev/null 2>&1 || source /etc/profile; type module"):
        return good("modules", "there is a module system, and nothing is to be loaded")
    return skipped("modules", "no module system, and nothing is to be loaded")


async def _runs(lines: str) -> bool:
    """Whether a shell ends well."""
    process = await asyncio.create_subprocess_exec(
        "bash", "-c", lines,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            return await process.wait() == 0
    except TimeoutError:
        return False
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
