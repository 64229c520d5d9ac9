"""The Dask tasks that units of offline requests are. Drivers name these functions; workers run them beside an engine.

Arguments and results are msgpack, so that Dask carries bytes and looks into nothing. A task finds its engine through
the plugin of the worker that it runs on; there are no globals.
"""

from __future__ import annotations

from typing import Any

import msgspec
from distributed import WorkerPlugin, get_worker

from hpcserve.agent.units import Units
from hpcserve.types import EngineRequest, KvHandle

PLUGIN = "hpcserve-units"

_decode_requests = msgspec.msgpack.Decoder(list[EngineRequest]).decode
_decode_handles = msgspec.msgpack.Decoder(list[KvHandle | None]).decode
_encode = msgspec.msgpack.Encoder().encode
_ENDS = ("cancelled", "released", "forgotten")


class UnitPlugin(WorkerPlugin):  # type: ignore[misc]
    """A Dask worker's way to its agent's units. Ends those that nobody waits for any more: Dask cannot."""

    name = PLUGIN

    def __init__(self, units: Units) -> None:
        self.units = units

    def transition(self, key: str, start: str, finish: str, **_: Any) -> None:
        """Note that a task changed its state."""
        if finish in _ENDS:
            self.units.abort(key)


async def run_unit(key: bytes, requests: bytes) -> bytes:
    """Run some `EngineRequest`s; return their whole `EngineOutput`s. Raises as `Units.run`. `key` is the task's own."""
    return _encode(await _units().run(key.decode(), _decode_requests(requests)))


async def prefill_unit(key: bytes, requests: bytes) -> bytes:
    """Compute the prompts of some `EngineRequest`s; return their `KvHandle`s. Raises as `Units.run`."""
    return _encode(await _units().prefill(key.decode(), _decode_requests(requests)))


async def decode_unit(key: bytes, requests: bytes, handles: bytes) -> bytes:
    """Run requests whose prompts were computed elsewhere; see `run_unit`."""
    pairs = zip(_decode_requests(requests), _decode_handles(handles), strict=True)
    together = [msgspec.structs.replace(each, kv=handle) for each, handle in pairs]
    return _encode(await _units().run(key.decode(), together))


def _units() -> Units:
    units: Units = get_worker().plugins[PLUGIN].units
    return units
