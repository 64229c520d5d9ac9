"""The vLLM engine behind `AsyncEngine`: its life. Knows nothing of routing, of Dask or of HTTP.

How it is brought up is in `loading`, how a request runs in `running`.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from hpcserve.config import Config
from hpcserve.engine.protocol import EngineContext, OnOutput
from hpcserve.engine.push import iterate
from hpcserve.engine.vllm import translate
from hpcserve.engine.vllm.core import Prefilled, Vllm, describe_failure, tap_prefills
from hpcserve.engine.vllm.kv_events import KvEventReader
from hpcserve.engine.vllm.load import LoadMeter
from hpcserve.engine.vllm.loading import examine, load_vllm
from hpcserve.engine.vllm.running import OpenRequest, Runner
from hpcserve.engine.vllm.submit import submit_of
from hpcserve.errors import EngineError, HpcserveError
from hpcserve.types import EngineInfo, EngineOutput, EngineRequest, KvEvent, LoadReport, RequestId

logger = logging.getLogger(__name__)

_STOP_TIMEOUT_S = 10.0
_LONGEST_SOCKET_DIRECTORY = 70  # characters; a Unix socket's whole path has 107


class VllmEngine:
    """One vLLM engine in this process; a process holds one at a time."""

    def __init__(self, config: Config, context: EngineContext) -> None:
        self._config = config
        self._context = context
        self._vllm: Vllm | None = None
        self._reader: KvEventReader | None = None
        self._reading: asyncio.Task[None] | None = None
        self._sockets: Path | None = None
        self._meter = LoadMeter()
        self._come_from: dict[str, Prefilled] = {}
        self._open: dict[RequestId, OpenRequest] = {}
        self._runner: Runner | None = None
        # vLLM starts and stops in one thread that lives as long as it: neither may block the loop.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vllm")

    async def start(self, on_kv_events: Callable[[list[KvEvent]], None]) -> EngineInfo:
        """See `AsyncEngine.start`. Raises `ConfigError` for settings that vLLM cannot run with."""
        loop = asyncio.get_running_loop()
        began = time.monotonic()
        self._sockets = _make_socket_directory(self._context.scratch)
        load = functools.partial(load_vllm, self._config, self._context, self._meter, self._sockets)
        try:
            vllm, moves_kv = await loop.run_in_executor(self._thread, load)
            self._vllm = vllm
            tap_prefills(vllm, self._on_prefilled)
            submit = submit_of(vllm)
            loaded = await examine(self._config, vllm, moves_kv=moves_kv)
            self._reader = KvEventReader(f"ipc://{self._sockets}/events", loaded.info.block_size, on_kv_events)
            await self._reader.connect()
        except HpcserveError:
            await self.stop()
            raise
        except Exception as err:
            logger.exception("vLLM did not start")
            await self.stop()
            raise describe_failure(err) from err
        self._reading = asyncio.create_task(self._reader.run(), name="kv-events")
        self._runner = Runner(loaded, submit, self._context.worker, self._meter, self._come_from)
        logger.info("vLLM is up after %.1f s", time.monotonic() - began)
        return loaded.info

    def generate(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        """See `AsyncEngine.generate`."""
        return iterate(self.run, request)

    async def run(self, request: EngineRequest, on_output: OnOutput) -> None:
        """See `PushingEngine.run`."""
        runner = self._runner
        if runner is None:
            raise EngineError("the engine is not running")
        if why := self._refuse(request, runner):
            on_output(translate.refused(request, why))
            return
        self._open[request.request_id] = state = OpenRequest(is_first_in_line=not self._meter.waiting_tokens)
        self._meter.open(request.request_id, len(request.token_ids))
        try:
            await runner.run(request, state, on_output)
        finally:
            self._meter.close(request.request_id)
            self._come_from.pop(request.request_id, None)
            del self._open[request.request_id]
            state.ended.set()

    async def abort(self, request_id: RequestId) -> None:
        """See `AsyncEngine.abort`."""
        if self._vllm is not None and request_id in self._open:
            await self._vllm.llm.abort(request_id)

    def load(self) -> LoadReport:
        """See `AsyncEngine.load`."""
        return self._meter.report()

    async def stop(self) -> None:
        """See `AsyncEngine.stop`."""
        running = list(self._open.values())
        for request_id in list(self._open):
            with suppress(Exception):  # the engine may be dead
                await self.abort(request_id)
        with suppress(TimeoutError):
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                for state in running:
                    await state.ended.wait()
        await self._free()

    def _refuse(self, request: EngineRequest, runner: Runner) -> str | None:
        if request.request_id in self._open:
            return f"request id {request.request_id} is already running"
        return runner.refuse(request)

    def _on_prefilled(self, request_id: str, come_from: Prefilled) -> None:
        self._come_from[request_id] = come_from
        self._meter.computed(RequestId(request_id))

    async def _free(self) -> None:
        self._runner = None
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
            self._reading = None
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        if self._vllm is not None:
            vllm, self._vllm = self._vllm, None
            await vllm.stop_reading()
            await asyncio.get_running_loop().run_in_executor(self._thread, vllm.shutdown)
        if self._sockets is not None:
            shutil.rmtree(self._sockets, ignore_errors=True)
            self._sockets = None
        self._thread.shutdown(wait=False)


def _make_socket_directory(scratch: Path) -> Path:
    parent = scratch if len(str(scratch)) <= _LONGEST_SOCKET_DIRECTORY else None
    return Path(tempfile.mkdtemp(prefix="vllm-", dir=parent))
