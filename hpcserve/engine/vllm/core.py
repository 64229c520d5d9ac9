"""Brings vLLM up, in this process or beside it, and takes it down. Here and in `submit` are vLLM's private classes.

`EngineCoreProc` in a thread and the tap on `OutputProcessor` fit vLLM 0.32. With another version the core runs in a
process of its own, as vLLM starts it, and what a request pulled is not known; both are said aloud in `Vllm.warnings`.
"""

from __future__ import annotations

import asyncio
import copy
import gc
import json
import logging
import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcserve.errors import EngineError

logger = logging.getLogger(__name__)

FITS = "0.32."
"""Beginning of the versions whose private parts we know."""
_JOIN_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Prefilled:
    """Where the KV of a prompt came from, in tokens. The rest was computed."""

    cached: int
    pulled: int


@dataclass
class Vllm:
    """A running vLLM: the client, and the core where it is a thread of this process."""

    llm: Any  # vllm.v1.engine.async_llm.AsyncLLM
    core: _CoreThread | None = None
    warnings: list[str] = field(default_factory=list)
    beside: ExitStack = field(default_factory=ExitStack)  # what the engine needs for as long as it lives

    async def stop_reading(self) -> None:
        """End the client's task on this loop; it would take the closing of its sockets for the death of the core."""
        task = getattr(self.llm, "output_handler", None)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    def shutdown(self) -> None:
        """Stop the core and free its memory and its NIXL agent. Blocks; safe to call twice."""
        if self.core is not None:
            self.core.stop()
            self.core = None
        if self.llm is not None:
            self.llm.shutdown()
            self.llm = None
        self.beside.close()
        gc.collect()


def start_vllm(arguments: Any, stat_logger: Callable[..., Any], sockets: Path, *, in_process: bool) -> Vllm:
    """Load the model named by `arguments` (`AsyncEngineArgs`). Blocks for seconds to minutes.

    `sockets` is a short directory for ZeroMQ. Raises whatever vLLM raises, after which nothing is left running.
    """
    vllm = _start(arguments, stat_logger, sockets, in_process=in_process)
    _spare_what_nobody_sees(vllm.llm)
    return vllm


def _start(arguments: Any, stat_logger: Callable[..., Any], sockets: Path, *, in_process: bool) -> Vllm:
    from vllm import __version__
    from vllm.v1.engine.async_llm import AsyncLLM

    if in_process and __version__.startswith(FITS):
        try:
            return _start_in_process(arguments, stat_logger, sockets)
        except (ImportError, AttributeError, TypeError) as err:
            reason = f"vLLM {__version__} does not fit our in-process core ({err})"
    elif in_process:
        reason = f"vLLM {__version__} is not {FITS}x, which our in-process core was made for"
    else:
        return Vllm(AsyncLLM.from_engine_args(arguments, stat_loggers=[stat_logger]))
    warning = f"{reason}; the engine core runs in processes of its own and starts more slowly"
    logger.warning(warning)
    return Vllm(AsyncLLM.from_engine_args(arguments, stat_loggers=[stat_logger]), warnings=[warning])


def tap_prefills(vllm: Vllm, on_prefilled: Callable[[str, Prefilled], None]) -> None:
    """Call `on_prefilled(request id, ...)` before the first output of a request is handed out.

    vLLM's public outputs have one number for cached and pulled tokens together, and with a KV handle it is the number
    of the prefill worker.
    """
    try:
        processor = vllm.llm.output_processor
        process, states = processor.process_outputs, processor.request_states
    except AttributeError as err:
        vllm.warnings.append(f"this vLLM does not tell what was pulled ({err}); pulled tokens count as cached")
        logger.warning(vllm.warnings[-1])
        return

    def process_and_tell(outputs: list[Any], *args: Any, **kwargs: Any) -> Any:
        for output in outputs:
            stats, state = output.prefill_stats, states.get(output.request_id)
            if stats is not None and state is not None:
                told = Prefilled(cached=stats.num_local_cached_tokens, pulled=stats.num_external_cached_tokens)
                on_prefilled(state.external_req_id, told)
        return process(outputs, *args, **kwargs)

    processor.process_outputs = process_and_tell


def _spare_what_nobody_sees(llm: Any) -> None:
    """Drop vLLM's own Prometheus metrics, which nobody scrapes here, and have its settings read once.

    The two are a tenth of what an output costs this process. A vLLM that has neither is left as it is.
    """
    from vllm import envs
    from vllm.v1.metrics.loggers import PrometheusStatLogger

    manager = getattr(llm, "logger_manager", None)
    if manager is not None:
        manager.stat_loggers = [each for each in manager.stat_loggers if not isinstance(each, PrometheusStatLogger)]
    if hasattr(envs, "enable_envs_cache"):
        envs.enable_envs_cache()


def _start_in_process(arguments: Any, stat_logger: Callable[..., Any], sockets: Path) -> Vllm:
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.executor import Executor

    _inspect_model_here(Path(arguments.model))
    config = arguments.create_engine_config(UsageContext.ENGINE_CONTEXT)
    executor = Executor.get_class(config)
    addresses = {"input_address": f"ipc://{sockets}/in", "output_address": f"ipc://{sockets}/out"}
    core = _CoreThread(copy.deepcopy(config), executor, addresses)
    core.start()
    try:
        llm = AsyncLLM(
            vllm_config=config,
            executor_class=executor,
            log_stats=False,
            log_requests=False,
            stat_loggers=[stat_logger],
            client_addresses=addresses,
        )
    except BaseException:
        core.stop()
        raise
    return Vllm(llm, core)


def _inspect_model_here(model: Path) -> None:
    """Spare vLLM a process that imports all of it to look at the model's class: 10 s at a machine's first start."""
    from vllm.model_executor.models.registry import ModelRegistry, _LazyRegisteredModel, _RegisteredModel

    for name in json.loads((model / "config.json").read_text()).get("architectures") or ():
        registered = ModelRegistry.models.get(name)
        if isinstance(registered, _LazyRegisteredModel):
            ModelRegistry.models[name] = _RegisteredModel.from_model_cls(registered.load_model_cls())


class _CoreThread:
    """vLLM's engine core in a thread: one process and 3 s instead of three processes and 20 s. It shares the GIL."""

    def __init__(self, config: Any, executor: Any, addresses: dict[str, str]) -> None:
        self._make_core: Callable[[], Any] = lambda: _core_class()(
            addresses,
            vllm_config=config,
            local_client=True,
            handshake_address="",
            executor_class=executor,
            log_stats=True,
        )
        self._thread = threading.Thread(target=self._run, name="engine-core", daemon=True)
        self._is_up = threading.Event()
        self._core: Any = None
        self._failure: BaseException | None = None

    def start(self) -> None:
        """Load the model. Raises what vLLM raised."""
        self._thread.start()
        self._is_up.wait()
        if self._failure is not None:
            self._thread.join(_JOIN_TIMEOUT_S)
            raise self._failure

    def stop(self) -> None:
        """End the loop and wait for it; running requests are aborted."""
        from vllm.v1.engine import EngineCoreRequestType
        from vllm.v1.engine.core import EngineShutdownState

        if core := self._core:
            core.shutdown_state = EngineShutdownState.REQUESTED
            core.input_queue.put_nowait((EngineCoreRequestType.WAKEUP, None))
        self._thread.join(_JOIN_TIMEOUT_S)
        if self._thread.is_alive():
            logger.error("vLLM's engine core did not stop within %.0f s", _JOIN_TIMEOUT_S)

    def _run(self) -> None:
        try:
            self._core = self._make_core()
        except BaseException as err:  # noqa: BLE001 - the edge of a thread: start() raises it
            self._failure = err
            return
        finally:
            self._is_up.set()
        try:
            self._core.run_busy_loop()
        except SystemExit:
            pass
        except Exception:
            logger.exception("vLLM's engine core failed")
            self._core._send_engine_dead()
        finally:
            core, self._core = self._core, None
            core.shutdown()
            # The core's socket threads stay and hold on to it, but must not hold the model, the KV and the NIXL agent:
            # an agent that outlives the interpreter crashes it.
            core.model_executor = core.scheduler = None
            gc.collect()


def _core_class() -> Any:
    from vllm.v1.engine.core import EngineCoreProc
    from vllm.v1.engine.utils import EngineZmqAddresses

    class ThreadCore(EngineCoreProc):  # type: ignore[misc]
        """An engine core that knows its client's addresses and so needs no handshake with a parent process."""

        def __init__(
            self,
            client: dict[str, str],
            *,
            vllm_config: Any,
            local_client: bool,
            handshake_address: str,
            executor_class: Any,
            log_stats: bool,
        ) -> None:
            self._client = client
            super().__init__(vllm_config, local_client, handshake_address, executor_class, log_stats)

        @contextmanager
        def _perform_handshakes(
            self, handshake_address: str, identity: bytes, local_client: bool, vllm_config: Any, client: str | None
        ) -> Generator[Any]:
            yield EngineZmqAddresses(inputs=[self._client["input_address"]], outputs=[self._client["output_address"]])
            vllm_config.__post_init__()

        def has_work(self) -> bool:
            # Blocks leased to a peer that never fetches them would hold a stop up for 30 s.
            return self.is_running() and bool(super().has_work())

    return ThreadCore


def describe_failure(err: BaseException) -> EngineError:
    """Return what to raise for an error of vLLM's while it started."""
    return EngineError(f"vLLM did not start: {type(err).__name__}: {str(err).strip() or 'no message'}")
