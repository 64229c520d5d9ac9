"""Kills and stops of the deployment's processes: agents, engine cores, frontends, the head."""

from __future__ import annotations

import math
import os
import signal
import time
from contextlib import suppress

from tests.chaos.faults.fault import Fault, Inflicted, pick
from tests.chaos.world import World


async def _kill_agent(world: World, target: float) -> Inflicted:
    agent = pick(world.agents(), target)
    _send(agent.pid, signal.SIGKILL)
    return Inflicted(f"SIGKILL to {agent.worker} ({agent.pid})")


async def _term_agent(world: World, target: float) -> Inflicted:
    agent = pick(world.agents(), target)
    _send(agent.pid, signal.SIGTERM)
    return Inflicted(f"SIGTERM to {agent.worker} ({agent.pid})")


async def _stop_agent(world: World, target: float) -> Inflicted:
    agent = pick(world.agents(), target)
    return _stop(agent.pid, agent.worker)


async def _kill_engine_core(world: World, target: float) -> Inflicted:
    pid = pick(world.engine_cores(), target)
    _send(pid, signal.SIGKILL)
    return Inflicted(f"SIGKILL to the engine core {pid}")


async def _kill_frontend(world: World, target: float) -> Inflicted:
    pid = pick(world.frontends(), target)
    world.excuses.deaths.append(time.monotonic())
    _send(pid, signal.SIGKILL)
    return Inflicted(f"SIGKILL to frontend {pid}")


async def _stop_frontend(world: World, target: float) -> Inflicted:
    return _stop(pick(world.frontends(), target), "a frontend")


async def _kill_head(world: World, target: float) -> Inflicted:
    pid = pick(world.heads(), target)
    died_at = time.monotonic()
    world.excuses.head_gone[died_at] = math.inf
    _send(pid, signal.SIGKILL)

    async def up_again() -> str:
        return await world.bring_head_back(died_at)

    return Inflicted(f"SIGKILL to the head {pid}", up_again)


async def _stop_head(world: World, target: float) -> Inflicted:
    return _stop(pick(world.heads(), target), "the head")


def _stop(pid: int, what: str) -> Inflicted:
    _send(pid, signal.SIGSTOP)

    async def go_on() -> str:
        _send(pid, signal.SIGCONT)
        return "SIGCONT"

    return Inflicted(f"SIGSTOP to {what} ({pid})", go_on)


def _send(pid: int, sign: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, sign)


FAULTS = (
    Fault("kill-agent", 4, _kill_agent),
    Fault("term-agent", 2, _term_agent),
    Fault("stop-agent", 3, _stop_agent, hold_s=(1.0, 25.0)),
    Fault("kill-engine-core", 2, _kill_engine_core),
    Fault("kill-frontend", 2, _kill_frontend),
    Fault("stop-frontend", 1, _stop_frontend, hold_s=(0.5, 5.0)),
    Fault("kill-head", 2, _kill_head, hold_s=(0.5, 8.0)),
    Fault("stop-head", 1, _stop_head, hold_s=(0.5, 8.0)),
)
