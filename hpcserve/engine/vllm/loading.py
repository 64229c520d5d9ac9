"""Loads vLLM as the configuration asks, and finds out what the engine then can do. Answers no request."""

from __future__ import annotations

import dataclasses
import logging
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from hpcserve.config import Config
from hpcserve.engine.protocol import EngineContext
from hpcserve.engine.vllm import environment, grammar, plugin, resumed_sampling, seam, translate
from hpcserve.engine.vllm.arguments import build_engine_args, engine_arguments, is_pooling
from hpcserve.engine.vllm.core import Vllm, start_vllm
from hpcserve.engine.vllm.kv_choice import check_mpi, open_courier, why_no_kv
from hpcserve.engine.vllm.load import LoadMeter, make_stat_logger
from hpcserve.engine.vllm.parsers import Parsers, check_parser_names, find_parsers
from hpcserve.errors import ConfigError, EngineError
from hpcserve.types import Ability, EngineInfo

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded:
    """A vLLM that is up, and what it can be asked for."""

    vllm: Vllm
    info: EngineInfo
    parsers: Parsers | None
    resumes_grammars: bool

    @property
    def moves_kv(self) -> bool:
        """Whether it can hand over KV, and pull it."""
        return self.info.kv_transport is not None


def load_vllm(config: Config, context: EngineContext, meter: LoadMeter, sockets: Path) -> tuple[Vllm, bool]:
    """Load the model; return vLLM and whether it moves KV. Blocks for seconds to minutes.

    vLLM fills `meter`, and makes its sockets in the short directory `sockets`; KV events come from "events" in it.
    Raises `ConfigError`, `EngineError`, or whatever vLLM raises, after which nothing is left running.
    """
    if is_pooling(config):
        context = _without_kv(config, context)
    on_cpu = environment.is_cpu_build()
    in_process = config.engine.vllm.in_process
    in_process = on_cpu if in_process is None else in_process
    arguments = engine_arguments(config, context, events_endpoint=f"ipc://{sockets}/events", on_cpu=on_cpu)
    environment.prepare_environment(config, context, on_cpu=on_cpu, in_process=in_process)
    plugin.register()  # before anything loads NIXL
    check_parser_names(config.model)
    check_mpi(config, context, arguments, in_process=in_process)
    moves_kv, warnings = _settle_kv_transfer(config, context, arguments)
    with ExitStack() as stack:
        if moves_kv and config.kv.transport == "mpi" and not in_process:
            stack.enter_context(closing(open_courier(arguments, sockets, warnings)))
        engine_args = build_engine_args(arguments, config.engine.vllm.args)
        vllm = start_vllm(engine_args, make_stat_logger(meter), sockets, in_process=in_process)
        vllm.beside = stack.pop_all()
    if vllm.warnings and config.strict:
        vllm.shutdown()
        raise _refused(vllm.warnings[0])
    vllm.warnings += warnings
    return vllm, moves_kv


async def examine(config: Config, vllm: Vllm, *, moves_kv: bool) -> Loaded:
    """Ask a vLLM that is up what it can do. Raises `ConfigError` for parsers that do not fit its model."""
    tasks = await vllm.llm.get_supported_tasks()
    theirs = vllm.llm.vllm_config
    generates = "generate" in tasks
    if not generates and "embed" not in tasks:
        raise EngineError(
            f"this model can neither generate nor embed, only {', '.join(tasks)}: hpcserve has no use for it"
        )
    parsers = find_parsers(config, theirs.model_config, vllm.llm.get_tokenizer()) if generates else None
    why_not = grammar.resume_grammars() if generates else None
    if why_not is not None:
        vllm.warnings.append(f"{why_not}; requests for structured output fail when their worker is lost")
        logger.warning(vllm.warnings[-1])
    can: tuple[Ability, ...] = ("generate", "structured_output") if generates else ("embed",)
    why_else = (seam.continue_texts() or resumed_sampling.continue_sampling()) if generates else None
    if why_else is not None:
        vllm.warnings.append(f"{why_else}; requests whose worker is lost may go on with another text than without it")
        logger.warning(vllm.warnings[-1])
    info = EngineInfo(
        engine="vllm",
        model=config.served_name,
        block_size=theirs.cache_config.block_size,
        num_kv_blocks=theirs.cache_config.num_gpu_blocks or 0,
        max_model_len=theirs.model_config.max_model_len,
        max_batched_tokens=theirs.scheduler_config.max_num_batched_tokens,
        max_num_seqs=theirs.scheduler_config.max_num_seqs,
        kv_transport=_transport(config) if moves_kv else None,
        can=can + (parsers.abilities if parsers else ()),
        has_kv_events=bool(theirs.cache_config.enable_prefix_caching),
        warnings=tuple(vllm.warnings),
    )
    return Loaded(vllm=vllm, info=info, parsers=parsers, resumes_grammars=why_not is None)


def _transport(config: Config) -> str:
    return "mpi" if config.kv.transport == "mpi" else translate.TRANSPORT


def _without_kv(config: Config, context: EngineContext) -> EngineContext:
    """A prompt that is only embedded is nothing that another worker could go on with."""
    if config.pools.mode == "disaggregated":
        raise ConfigError("an engine that embeds has no decode part; take pools.mode: aggregated", param="pools.mode")
    return dataclasses.replace(context, moves_kv=False)


def _settle_kv_transfer(config: Config, context: EngineContext, arguments: dict[str, Any]) -> tuple[bool, list[str]]:
    """Take the KV transfer out of `arguments` where it cannot work. Returns whether it can, and warnings."""
    if not context.moves_kv:
        return False, []
    why = why_no_kv(config)
    if why is None:
        return True, []
    if config.pools.mode == "disaggregated":
        missing = "mpi4py" if config.kv.transport == "mpi" else "nixl"
        raise EngineError(
            f"{why}; prefill and decode workers need it: pip install {missing}, or take --mode aggregated"
        )
    warning = f"{why}; warm prefixes are computed again instead of pulled from another worker"
    if config.strict:
        raise _refused(f"{warning}; router.pull=false does without")
    logger.warning(warning)
    del arguments["kv_transfer_config"]
    return False, [warning]


def _refused(warning: str) -> EngineError:
    return EngineError(f"{warning} (refused: strict is true)")
