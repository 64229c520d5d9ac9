"""What has to hold when the faults are over: looked at one by one, each complaint a sentence."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from tests.chaos.world import World, until
from tests.fixtures_deployment import processes_of

_RECOVERED_S = 150.0  # for all workers to be READY again; back-off and start included
_IDLE_S = 45.0  # for every block to be free: those of a handle that nobody fetched are leased for 30 s
_CHAINED = ("The above exception was the direct cause", "During handling of the above exception")
_ENDED_CONNECTION = re.compile(r"(distributed\.comm\.core\.CommClosedError|tornado\.iostream\.StreamClosedError)\b")


async def recovered(world: World) -> list[str]:
    """Every worker that is wanted is READY again, and nobody waits."""

    async def is_well() -> bool:
        status = await world.status()
        return status is not None and not _ill(status)

    if await until(is_well, _RECOVERED_S, every_s=1.5):
        return []
    status = await world.status()
    return [f"not recovered within {_RECOVERED_S:.0f} s: {'; '.join(_ill(status)) if status else 'no status'}"]


def _ill(status: dict[str, Any]) -> list[str]:
    ready = [each for each in status["workers"] if each["state"] == "ready" and not each.get("is_silent")]
    wanted = sum(status["wanted"].values())
    found = [] if status["phase"] == "serving" else [f"phase {status['phase']}"]
    if len(ready) != wanted:
        states = {each["id"]: f"{each['state']} {each.get('detail') or ''}" for each in status["workers"]}
        found.append(f"{len(ready)} of {wanted} workers READY: {states}")
    return found


async def idle(world: World) -> list[str]:
    """No request runs or waits anywhere, every KV block is free, and the router has nothing booked."""

    async def is_idle() -> bool:
        status = await world.status()
        return status is not None and not _busy(status)

    if await until(is_idle, _IDLE_S, every_s=1.5):
        return []
    status = await world.status()
    return [f"not idle {_IDLE_S:.0f} s after the load: {'; '.join(_busy(status)) if status else 'no status'}"]


def _busy(status: dict[str, Any]) -> list[str]:
    found = []
    for worker in status["workers"]:
        load = worker.get("load") or {}
        if worker["state"] == "ready":
            found += [
                f"{worker['id']}: {name} is {load[name]}"
                for name in ("num_running", "num_waiting", "waiting_tokens", "kv_usage")
                if load.get(name)
            ]
    for name in ("num_waiting", "num_backfilling", "num_placed"):
        if status.get(name):
            found.append(f"{name} is {status[name]}")
    return found


async def nothing_left(world: World) -> list[str]:
    """After `down`: no job, no process."""
    left = (await world.slurm("squeue", "--noheader", "--format=%A %j %T")).splitlines()
    found = [f"job left in the queue: {line}" for line in left]
    return found + [f"process left: {line[:200]}" for line in processes_of(world.state.path.parent)]


def quiet_logs(logs: Path) -> list[str]:
    """No traceback in any log, but Dask's own words about connections that ended."""
    found = []
    for path in sorted(logs.glob("*.log")):
        for traceback in _tracebacks(path.read_text(errors="replace").splitlines()):
            if not _is_about_a_connection(traceback):
                places = [line.strip() for line in traceback if line.startswith('  File "')]
                found.append(f"traceback in {path.name}: {traceback[-1][:300]} at {places[-1] if places else '?'}")
    return found


def _tracebacks(lines: list[str]) -> list[list[str]]:
    """Return each traceback, with those of the exceptions that led to it before, to the line of its exception."""
    found: list[list[str]] = []
    is_inside = is_chained = False
    for line in lines:
        if line.startswith("Traceback (most recent call last):"):
            if not is_chained:
                found.append([])
            is_inside, is_chained = True, False
        if is_inside:
            found[-1].append(line)
            is_inside = line.startswith((" ", "Traceback "))
        else:
            is_chained = line.startswith(_CHAINED) or (is_chained and not line)
    return found


def _is_about_a_connection(traceback: list[str]) -> bool:
    """Whether it is of Dask's making, with none of our code in it."""
    ours = any(f"{os.sep}hpcserve{os.sep}" in line for line in traceback if line.startswith('  File "'))
    return not ours and bool(_ENDED_CONNECTION.match(traceback[-1]))
