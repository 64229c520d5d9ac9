"""Faults of the data plane: connections between a frontend and an agent end, are silent, or are slow."""

from __future__ import annotations

from tests.chaos import sockets
from tests.chaos.faults.fault import Fault, Inflicted, NoTarget, pick
from tests.chaos.sockets import Connection
from tests.chaos.world import World

_SLOW_BYTES_PER_S = 3000


async def _cut(world: World, target: float) -> Inflicted:
    connection = _pick(world, target)
    _try(sockets.cut, connection)
    return Inflicted(f"ended {_name(connection)}")


async def _swallow(world: World, target: float) -> Inflicted:
    connection = _pick(world, target)
    _try(sockets.swallow, connection)

    async def undo() -> str:
        sockets.let_through(connection)
        return "lets everything through"

    return Inflicted(f"nothing arrives at the frontend over {_name(connection)}", undo)


async def _slow(world: World, target: float) -> Inflicted:
    """The agent's end sends slowly: deltas come late."""
    agents, frontends = [each.pid for each in world.agents()], world.frontends()
    connection = pick(sockets.connections_between(agents, frontends), target)
    sockets.pace(connection, _SLOW_BYTES_PER_S)

    async def undo() -> str:
        sockets.pace(connection, None)
        return "as fast as before"

    return Inflicted(f"{_SLOW_BYTES_PER_S} bytes/s over {_name(connection)}", undo)


def _pick(world: World, target: float) -> Connection:
    return pick(sockets.connections_between(world.frontends(), [each.pid for each in world.agents()]), target)


def _try(hurt: object, connection: Connection) -> None:
    assert callable(hurt)
    try:
        hurt(connection)
    except OSError as err:  # it ended by itself just now
        raise NoTarget from err


def _name(connection: Connection) -> str:
    port = int(connection.remote.rpartition(":")[2], 16)
    return f"the connection of process {connection.pid} to port {port}"


FAULTS = (
    Fault("cut-connection", 2, _cut),
    Fault("swallow-connection", 2, _swallow, hold_s=(0.5, 40.0)),
    Fault("slow-connection", 1, _slow, hold_s=(2.0, 15.0)),
)
