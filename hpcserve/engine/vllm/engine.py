"""The vLLM engine behind `AsyncEngine`. Knows nothing of routing, of Dask or of HTTP.

What it does not do: presence and frequency penalties, stop strings and the seed's random stream begin anew at the first
token that this engine generates, so a request resumed here (`num_resumed`) sees them from there on only.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import shutil
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import msgspec

from hpcserve.config import Config
from hpcserve.engine.protocol import EngineContext
from hpcserve.engine.vllm import environment, plugin, translate
from hpcserve.engine.vllm.arguments import build_engine_args, engine_arguments
from hpcserve.engine.vllm.core import Prefilled, Vllm, describe_failure, start_vllm, tap_prefills
from hpcserve.engine.vllm.kv_events import KvEventReader
from hpcserve.engine.vllm.load import LoadMeter, make_stat_logger
from hpcserve.engine.vllm.seam import Seam
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
        self._open: dict[RequestId, _Open] = {}
        self._max_model_len = 0
        self._moves_kv = False
        # vLLM starts and stops in one thread that lives as long as it: neither may block the loop.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vllm")

    async def start(self, on_kv_events: Callable[[list[KvEvent]], None]) -> EngineInfo:
        """See `AsyncEngine.start`. Raises `ConfigError` for settings that vLLM cannot run with."""
        loop = asyncio.get_running_loop()
        began = time.monotonic()
        self._sockets = _make_socket_directory(self._context.scratch)
        events = f"ipc://{self._sockets}/events"
        try:
            self._vllm = await loop.run_in_executor(self._thread, self._load, events)
            tap_prefills(self._vllm, self._come_from.__setitem__)
            await self._vllm.llm.get_supported_tasks()
            self._reader = KvEventReader(events, self._config.engine.block_size, on_kv_events)
            await self._reader.connect()
        except HpcserveError:
            await self.stop()
            raise
        except Exception as err:
            logger.exception("vLLM did not start")
            await self.stop()
            raise describe_failure(err) from err
        self._reading = asyncio.create_task(self._reader.run(), name="kv-events")
        logger.info("vLLM is up after %.1f s", time.monotonic() - began)
        return self._describe(self._vllm)

    async def generate(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        """See `AsyncEngine.generate`."""
        if self._vllm is None:
            raise EngineError("the engine is not running")
        if why := self._refuse(request):
            yield translate.failed(request.request_id, why)
            return
        self._open[request.request_id] = state = _Open(is_first_in_line=not self._meter.waiting_tokens)
        self._meter.open(request.request_id, len(request.token_ids))
        try:
            async with aclosing(self._run(request, state, self._vllm)) as outputs:
                async for output in outputs:
                    yield output
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

    async def _free(self) -> None:
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

    def _load(self, events_endpoint: str) -> Vllm:
        on_cpu = environment.is_cpu_build()
        in_process = self._config.engine.vllm.in_process
        in_process = on_cpu if in_process is None else in_process
        arguments = engine_arguments(self._config, self._context, events_endpoint=events_endpoint, on_cpu=on_cpu)
        environment.prepare_environment(self._config, self._context, on_cpu=on_cpu, in_process=in_process)
        plugin.register()  # before anything loads NIXL
        warnings = self._settle_kv_transfer(arguments)
        assert self._sockets is not None
        vllm = start_vllm(
            build_engine_args(arguments, self._config.engine.vllm.args),
            make_stat_logger(self._meter),
            self._sockets,
            in_process=in_process,
        )
        if vllm.warnings and self._config.strict:
            vllm.shutdown()
            raise _refused(vllm.warnings[0])
        vllm.warnings += warnings
        return vllm

    def _settle_kv_transfer(self, arguments: dict[str, Any]) -> list[str]:
        """Take the KV transfer out of `arguments` where it cannot work, and return the warnings about that."""
        why = plugin.why_no_nixl() if self._context.moves_kv else None
        self._moves_kv = self._context.moves_kv and why is None
        if why is None:
            return []
        if self._config.pools.mode == "disaggregated":
            raise EngineError(f"{why}; prefill and decode workers need it: pip install nixl, or take --mode aggregated")
        warning = f"{why}; warm prefixes are computed again instead of pulled from another worker"
        if self._config.strict:
            raise _refused(f"{warning}; router.pull=false does without")
        logger.warning(warning)
        del arguments["kv_transfer_config"]
        return [warning]

    def _describe(self, vllm: Vllm) -> EngineInfo:
        config = vllm.llm.vllm_config
        self._max_model_len = config.model_config.max_model_len
        return EngineInfo(
            engine="vllm",
            model=self._config.served_name,
            block_size=config.cache_config.block_size,
            num_kv_blocks=config.cache_config.num_gpu_blocks or 0,
            max_model_len=self._max_model_len,
            max_batched_tokens=config.scheduler_config.max_num_batched_tokens,
            max_num_seqs=config.scheduler_config.max_num_seqs,
            kv_transport=translate.TRANSPORT if self._moves_kv else None,
            warnings=tuple(vllm.warnings),
        )

    def _refuse(self, request: EngineRequest) -> str | None:
        num_tokens = len(request.token_ids)
        if request.request_id in self._open:
            return f"request id {request.request_id} is already running"
        if not num_tokens:
            return "the prompt is empty"
        if num_tokens >= self._max_model_len:
            return f"the prompt has {num_tokens} tokens, the model's context {self._max_model_len}; shorten the prompt"
        if request.prefill_only and not self._moves_kv:
            return "this engine cannot hand over KV: it was started without KV transfer"
        return None

    async def _run(self, request: EngineRequest, state: _Open, vllm: Vllm) -> AsyncGenerator[EngineOutput]:
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        try:
            request = self._check_handle(request)
            seam = Seam(vllm.llm.get_tokenizer(), request)
            async with aclosing(_submit(request, request.request_id, vllm)) as outputs:
                async for output in outputs:
                    ours = seam.mend(translate.to_output(request, output, self._context.worker))
                    self._meter.generated_tokens += len(ours.token_ids)
                    if not state.has_output and ours.token_ids:
                        state.has_output = True
                        ours = self._complete_first(request, state, ours, output)
                    yield ours
        except EngineDeadError as err:
            raise EngineError("vLLM's engine died; the worker's log says why") from err
        except EngineGenerateError as err:
            if vllm.llm.errored:
                raise EngineError("vLLM's engine failed; the worker's log says why") from err
            yield translate.failed(request.request_id, f"vLLM failed on this request: {err.__cause__ or err}")
        except (ValueError, TypeError) as err:
            yield translate.failed(request.request_id, str(err))

    def _check_handle(self, request: EngineRequest) -> EngineRequest:
        """Return the request without a handle that is not for this engine or not for this prompt."""
        handle = request.kv
        if handle is None:
            return request
        if not self._moves_kv or handle.transport != translate.TRANSPORT:
            return self._recompute(request, f"this engine cannot pull over {handle.transport}")
        if handle.num_tokens > len(request.token_ids):
            return self._recompute(request, f"its handle covers {handle.num_tokens} tokens, more than the prompt has")
        return request

    def _complete_first(self, request: EngineRequest, state: _Open, first: EngineOutput, theirs: Any) -> EngineOutput:
        come_from = self._come_from.pop(request.request_id, None) or Prefilled(theirs.num_cached_tokens or 0, 0)
        if request.kv is not None:
            self._note_pull(request, state, come_from, theirs.metrics)
        self._meter.prefilled(request.request_id, come_from)
        if len(request.token_ids) - come_from.cached <= self._config.engine.block_size:  # all that could be, was cached
            first = translate.say_made_in(first, time.monotonic() - state.began)
        return msgspec.structs.replace(first, cached_tokens=come_from.cached, pulled_tokens=come_from.pulled)

    def _note_pull(self, request: EngineRequest, state: _Open, come_from: Prefilled, times: Any) -> None:
        assert request.kv is not None
        if come_from.pulled and state.is_first_in_line:
            made_in_s = request.kv.params.get(translate.MADE_IN, 0.0)
            self._meter.pulls.add(come_from.pulled, made_in_s + times.scheduled_ts - times.queued_ts)
        if not come_from.pulled and come_from.cached < request.kv.num_tokens:  # else it was there already
            self._count_failure(request, "its KV could not be pulled")

    def _recompute(self, request: EngineRequest, why: str) -> EngineRequest:
        self._count_failure(request, why)
        return msgspec.structs.replace(request, kv=None)

    def _count_failure(self, request: EngineRequest, why: str) -> None:
        self._meter.pull_failures += 1
        source = request.kv.source if request.kv else "?"
        logger.warning("request %s is recomputed: %s (from %s)", request.request_id, why, source)


@dataclasses.dataclass
class _Open:
    """A request that vLLM has, or is about to get."""

    is_first_in_line: bool  # no other prompt waited or was being computed when it came
    began: float = dataclasses.field(default_factory=time.monotonic)
    has_output: bool = False
    ended: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)


async def _submit(request: EngineRequest, request_id: str, vllm: Vllm) -> AsyncGenerator[Any]:
    from vllm.inputs.engine import tokens_input

    stream = vllm.llm.generate(
        tokens_input(request.token_ids, cache_salt=request.cache_salt),
        translate.to_sampling_params(request),
        request_id,
        priority=request.priority,
    )
    async with aclosing(stream) as outputs:
        async for output in outputs:
            yield output


def _refused(warning: str) -> EngineError:
    return EngineError(f"{warning} (refused: strict is true)")


def _make_socket_directory(scratch: Path) -> Path:
    parent = scratch if len(str(scratch)) <= _LONGEST_SOCKET_DIRECTORY else None
    return Path(tempfile.mkdtemp(prefix="vllm-", dir=parent))
