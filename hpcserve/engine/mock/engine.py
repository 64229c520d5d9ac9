"""The mock engine as an `AsyncEngine`: `MockCore` in real time, divided by `engine.mock.speedup`.

Loads are reported in simulated time: a worker that runs 100 times as fast still measures the rates of the GPU it
stands for. KV handles are data only (see `transfer`): the blocks behind one are not pinned. With a `kv.transport` that
is named, bytes are pulled before a request is queued (see `mover`), and simulated time goes by for them as well.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from hpcserve.config.models import Config, MockConfig
from hpcserve.engine.mock.core import MockCore, StepResult
from hpcserve.engine.mock.mover import Mover
from hpcserve.engine.mock.pace import Pace
from hpcserve.engine.mock.scheduler import Limits
from hpcserve.engine.mock.timing import TimingModel
from hpcserve.engine.mock.timing_file import read_timing
from hpcserve.engine.mock.tokens import load_table
from hpcserve.engine.mock.transfer import TRANSPORT, is_good, make_handle
from hpcserve.engine.protocol import EngineContext, OnOutput
from hpcserve.engine.push import iterate
from hpcserve.errors import ConfigError, EngineError
from hpcserve.kv.factory import open_transport
from hpcserve.types import EngineInfo, EngineOutput, EngineRequest, KvEvent, LoadReport, RequestId

_DEFAULT_MAX_MODEL_LEN = 131072


@dataclass(frozen=True, slots=True)
class _Open:
    """A request that runs: who takes its outputs, and who waits for its end."""

    on_output: OnOutput
    ended: asyncio.Future[None]

    def finish(self, output: EngineOutput) -> None:
        if not self.ended.done():  # else it was cancelled
            self.on_output(output)
            self.ended.set_result(None)

    def fail(self, error: EngineError) -> None:
        if not self.ended.done():
            self.ended.set_exception(error)


class MockEngine:
    """One simulated engine. It owns one task, from `start` to `stop`."""

    def __init__(self, config: Config, context: EngineContext) -> None:
        self._config = config
        self._context = context
        self._core: MockCore | None = None
        self._last_load = LoadReport()  # once there is no core any more
        self._loop: asyncio.Task[None] | None = None
        self._mover: Mover | None = None
        self._moving: asyncio.Task[None] | None = None
        self._open: dict[RequestId, _Open] = {}
        self._ended_in_step: set[RequestId] = set()  # aborted while the step that has their tokens was under way
        self._work = asyncio.Event()

    async def start(self, on_kv_events: Callable[[list[KvEvent]], None]) -> EngineInfo:
        """Read the tokenizer, and wait as long as loading a model would take."""
        mock, block_size = self._config.engine.mock, self._config.engine.block_size
        table = await asyncio.to_thread(load_table, self._config.model.path)
        await asyncio.sleep(0.0 if math.isinf(mock.speedup) else mock.load_s / mock.speedup)
        limits = Limits(
            num_blocks=mock.num_kv_blocks,
            block_size=block_size,
            max_num_seqs=mock.max_num_seqs,
            max_batched_tokens=mock.max_batched_tokens,
        )
        self._mover = await asyncio.to_thread(_open_mover, self._config, self._context)
        if self._mover is not None:
            self._moving = asyncio.create_task(self._mover.run(), name="mock-kv")
        core = MockCore(limits, await asyncio.to_thread(_timing, mock), table, _max_model_len(self._config))
        self._core = core
        self._loop = asyncio.create_task(self._run(core, on_kv_events), name="mock-engine")
        return EngineInfo(
            engine="mock",
            model=self._config.served_name,
            block_size=block_size,
            num_kv_blocks=mock.num_kv_blocks,
            max_model_len=core.max_model_len,
            max_batched_tokens=mock.max_batched_tokens,
            max_num_seqs=mock.max_num_seqs,
            kv_transport=self._transport,
            has_kv_events=mock.kv_events,
        )

    def generate(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        """See `AsyncEngine.generate`."""
        return iterate(self.run, request)

    async def run(self, request: EngineRequest, on_output: OnOutput) -> None:
        """Hand over one output a token."""
        core = self._core
        if core is None:
            raise EngineError("the mock engine is not running")
        can_pull = await self._pull(request)
        if can_pull is None:
            on_output(EngineOutput(request_id=request.request_id, finish_reason="abort"))
            return
        problem = core.add(request, can_pull=can_pull)
        if problem is not None:
            on_output(problem)
            return
        mine = self._open[request.request_id] = _Open(on_output, asyncio.get_running_loop().create_future())
        self._work.set()
        try:
            await mine.ended
        finally:
            if self._open.get(request.request_id) is mine:
                del self._open[request.request_id]
                self._end(request.request_id)

    async def abort(self, request_id: RequestId) -> None:
        """End a request before its next token."""
        if self._mover is not None:
            self._mover.abort(request_id)
        aborted = self._open.pop(request_id, None)
        if aborted is not None:
            self._end(request_id)
            aborted.finish(EngineOutput(request_id=request_id, finish_reason="abort"))

    def load(self) -> LoadReport:
        """Return the newest measurements."""
        return self._last_load if self._core is None else self._core.load()

    async def stop(self) -> None:
        """End the requests and the task."""
        for request_id in list(self._open):
            await self.abort(request_id)
        if self._mover is not None:
            self._mover.abort_all()
        self._last_load, self._core = self.load(), None
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.wait([self._loop])
            self._loop = None
        if self._mover is not None and self._moving is not None:
            self._moving.cancel()
            await asyncio.wait([self._moving])
            await asyncio.to_thread(self._mover.close)
            self._mover = self._moving = None

    @property
    def _transport(self) -> str:
        return TRANSPORT if self._mover is None else self._mover.kind

    async def _pull(self, request: EngineRequest) -> bool | None:
        """Return whether the request's handle is good, and its bytes, if any, are here; None if it was aborted."""
        if request.kv is None or not is_good(request.kv, time.time(), self._transport):
            return False
        return True if self._mover is None else await self._mover.fetch(request.request_id, request.kv)

    def _end(self, request_id: RequestId) -> None:
        self._ended_in_step.add(request_id)
        if self._core is not None:
            self._core.abort(request_id)

    async def _run(self, core: MockCore, on_kv_events: Callable[[list[KvEvent]], None]) -> None:
        try:
            await self._keep_stepping(core, on_kv_events)
        except Exception as err:  # noqa: BLE001  # the edge: nobody may wait for a dead engine
            self._last_load, self._core = self.load(), None
            for each in self._open.values():
                each.fail(EngineError(f"the mock engine died: {err!r}"))
            self._open.clear()

    async def _keep_stepping(self, core: MockCore, on_kv_events: Callable[[list[KvEvent]], None]) -> None:
        pace = Pace(self._config.engine.mock.speedup)
        while True:
            self._work.clear()
            wakes_at = core.wakes_at(pace.now)
            if wakes_at is None:
                await self._work.wait()
                pace.catch_up()
            elif wakes_at > pace.now:
                await pace.reach_or(wakes_at, self._work)
            else:
                self._ended_in_step.clear()
                step = core.step(pace.now)
                await pace.reach(pace.now + step.duration_s)
                self._deliver(step, on_kv_events)

    def _deliver(self, step: StepResult, on_kv_events: Callable[[list[KvEvent]], None]) -> None:
        for output in step.outputs:
            request_id = output.request_id
            if request_id in self._ended_in_step:
                continue
            if output.finish_reason is None:
                self._open[request_id].on_output(output)
            else:
                self._open.pop(request_id).finish(self._with_handle(output, step))
        if step.events and self._config.engine.mock.kv_events:
            on_kv_events(step.events)

    def _with_handle(self, output: EngineOutput, step: StepResult) -> EngineOutput:
        prefilled = step.prefilled.get(output.request_id)
        if prefilled is None:
            return output
        handle = make_handle(self._context.worker, prefilled.num_tokens, prefilled.names, time.time())
        if self._mover is not None:
            params = handle.params | self._mover.offer(prefilled.names)
            handle = msgspec.structs.replace(handle, transport=self._mover.kind, params=params)
        return msgspec.structs.replace(output, kv=handle)


def _open_mover(config: Config, context: EngineContext) -> Mover | None:
    kind = config.kv.transport
    if kind == "auto" or not context.moves_kv:
        return None
    if kind == "mpi" and config.cluster.kind != "mpi":
        raise ConfigError(f"kv.transport is mpi, but cluster.kind is {config.cluster.kind}", param="kv.transport")
    return Mover(open_transport(kind, timeout_s=config.kv.timeout_s, strict=config.strict))


def _timing(mock: MockConfig) -> TimingModel:
    model = TimingModel.from_config(mock)
    if mock.timing is None:
        return model
    return read_timing(mock.timing).model(model.kv_bytes_per_token, model.kv_bandwidth_bytes_per_s)


def _max_model_len(config: Config) -> int:
    """Return the context in tokens: as configured, or the model's own."""
    if config.model.max_model_len is not None:
        return config.model.max_model_len
    if config.model.path is None:
        return _DEFAULT_MAX_MODEL_LEN
    return _read_max_position(config.model.path / "config.json")


def _read_max_position(file: Path) -> int:
    try:
        return int(json.loads(file.read_text())["max_position_embeddings"])
    except FileNotFoundError:
        return _DEFAULT_MAX_MODEL_LEN
    except (ValueError, TypeError, KeyError) as err:
        raise EngineError(f"{file} does not say max_position_embeddings: {err!r}; set model.max_model_len") from err
