"""Runs units of engine requests as Dask tasks of a deployment: one task, or one that prefills and one that decodes.

Dask moves the bytes, runs what was lost with a worker once more, and forgets a task as soon as its result is here.
Which worker has it the head decides, from the annotation. The connection is the owner's: it needs the deployment's
private key.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from typing import Any, Literal

import dask
import msgspec
from distributed import Client, KilledWorker
from distributed.client import FutureCancelledError, FuturesCancelledError

from hpcserve.agent.unit_tasks import decode_unit, prefill_unit, run_unit
from hpcserve.comm.protocol import UNIT, UnitDemand
from hpcserve.comm.tls import security
from hpcserve.errors import ConnectionLost, EngineError, HpcserveError
from hpcserve.kv.hashing import hash_blocks
from hpcserve.state import StateDir
from hpcserve.types import EngineOutput, EngineRequest

_CONNECT_TIMEOUT_S = 10.0
_CHECK_S = 1.0
_MAX_HASHES = 1024  # of a unit's shared blocks; what is beyond tells the head little more
_BROKEN = (OSError, TimeoutError, ValueError)  # the last is tornado's where a connection ends as TLS begins on it
_RETRIES = 1  # by Dask, where an engine died under a task; a lost worker's it counts itself

DASK_CONFIG = {
    "distributed.comm.timeouts.connect": f"{_CONNECT_TIMEOUT_S:.0f}s",
    "distributed.admin.large-graph-warning-threshold": "1GB",  # prompts are what tasks are made of
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.low-level-log-length": 10,  # messages are kept whole, and have prompts
    "distributed.diagnostics.computations.nframes": 0,
}

_encode = msgspec.msgpack.Encoder().encode
_decode_outputs = msgspec.msgpack.Decoder(list[EngineOutput]).decode


class UnitTasks:
    """A driver's connection to the Dask scheduler. It comes back after a loss, when somebody asks; close it."""

    def __init__(self, state: StateDir, block_size: int) -> None:
        self._state = state
        self._block_size = block_size
        self._client: Any = None
        self._connecting = asyncio.Lock()
        self._run = secrets.token_hex(4)  # keys are never used twice, not by other drivers either
        self._num_tasks = 0

    async def connect(self) -> None:
        """Be connected. Raises `ConnectionLost` if the scheduler cannot be reached."""
        async with self._connecting:
            if self._client is not None and self._client.status == "running":
                return
            await self.close()
            head = self._state.read_head()
            if head is None:
                raise ConnectionLost("the state directory names no head")
            dask.config.set(DASK_CONFIG)
            client: Any = Client(
                head.scheduler,
                security=security(self._state.tls_cert, self._state.tls_key),
                asynchronous=True,
                direct_to_workers=True,
                set_as_default=False,
                timeout=_CONNECT_TIMEOUT_S,
                name="hpcserve-batch",
            )
            try:
                await client
            except _BROKEN as err:
                await client.close()
                raise ConnectionLost(f"the scheduler at {head.scheduler} cannot be reached: {err}") from err
            self._client = client

    async def close(self) -> None:
        """Leave; what runs is aborted."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def run(
        self,
        name: str,
        number: int,
        requests: Sequence[EngineRequest],
        *,
        is_staged: bool,
        num_output_tokens: int,
        check: Callable[[], None],
    ) -> list[EngineOutput]:
        """Run a unit and return the whole output of each request. Cancelling aborts it.

        `check` is called every second, and may raise. Raises `ConnectionLost` without a scheduler, and `EngineError`
        when the unit's workers, or their engines, died under it.
        """
        await self.connect()
        demand = self._demand(requests, num_output_tokens)
        data = _encode(requests)
        futures = []
        try:
            if is_staged:
                futures.append(self._submit(f"{name}-prefill", number, prefill_unit, [data], demand, "prefill"))
                futures.append(
                    self._submit(f"{name}-decode", number, decode_unit, [data, futures[0]], demand, "decode")
                )
            else:
                futures.append(self._submit(name, number, run_unit, [data], demand, "whole"))
            return _decode_outputs(await _result(futures[-1], check))
        finally:
            for future in futures:
                future.release()

    def _submit(
        self,
        name: str,
        number: int,
        work: Callable[..., Any],
        args: list[Any],
        demand: UnitDemand,
        stage: Literal["whole", "prefill", "decode"],
    ) -> Any:
        """Submit one task. Up to the first number its key is the name that Dask's pages show it by."""
        self._num_tasks += 1
        key = f"{name}-{number:06d}-{self._run}-{self._num_tasks}"
        told = {UNIT: msgspec.to_builtins(msgspec.structs.replace(demand, stage=stage))}
        with dask.annotate(**told):
            return self._client.submit(work, key.encode(), *args, key=key, pure=False, retries=_RETRIES)

    def _demand(self, requests: Sequence[EngineRequest], num_output_tokens: int) -> UnitDemand:
        shared = _shared_tokens(requests)
        salts = {each.cache_salt for each in requests}
        hashes = hash_blocks(shared, self._block_size, salts.pop()) if len(salts) == 1 else []
        return UnitDemand(
            stage="whole",
            num_requests=len(requests),
            num_tokens=sum(len(each.token_ids) for each in requests),
            num_output_tokens=num_output_tokens,
            num_shared_tokens=len(shared),
            block_hashes=hashes[:_MAX_HASHES],
        )


def _shared_tokens(requests: Sequence[EngineRequest]) -> list[int]:
    """Return the leading tokens that all prompts have in common: those of the first and the last in order."""
    first, last = (found([each.token_ids for each in requests]) for found in (min, max))
    for index, (one, other) in enumerate(zip(first, last, strict=False)):
        if one != other:
            return first[:index]
    return first[: len(last)]


async def _result(future: Any, check: Callable[[], None]) -> bytes:
    waiting: asyncio.Task[bytes] = asyncio.ensure_future(future.result())
    try:
        while not (await asyncio.wait((waiting,), timeout=_CHECK_S))[0]:
            check()
    finally:
        waiting.cancel()
    try:
        return waiting.result()
    except (FutureCancelledError, FuturesCancelledError) as err:  # so they end when the scheduler is lost
        raise ConnectionLost("the scheduler is lost, and its tasks with it") from err
    except KilledWorker as err:
        raise EngineError(f"the workers that ran it died, {err.allowed_failures + 1} of them") from err
    except HpcserveError:
        raise
    except (OSError, TimeoutError) as err:
        raise ConnectionLost(f"its result cannot be fetched: {err}") from err
