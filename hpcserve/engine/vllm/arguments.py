"""From our configuration to the arguments of vLLM's `AsyncEngineArgs`. Starts nothing."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hpcserve.config import Config
from hpcserve.engine.protocol import EngineContext
from hpcserve.errors import ConfigError, did_you_mean

_CPU_BLOCK = 32  # tokens; vLLM's CPU attention is built for multiples of it
_CPU_KV_BYTES = 1 << 30
_STEP_DETAILS = "enable_logging_iteration_details"  # tells our logger what each step computed; vLLM's own log is off
_OURS = {
    "model": "model.path",
    "served_model_name": "model.name",
    "max_model_len": "model.max_model_len",
    "dtype": "model.dtype",
    "tensor_parallel_size": "model.tensor_parallel",
    "block_size": "engine.block_size",
    "kv_transfer_config": "pools.mode or router.pull",
    "kv_events_config": "router.policy",
    "enable_prefix_caching": "router.policy",
    "reasoning_parser": "model.reasoning_parser",
}


def engine_arguments(config: Config, context: EngineContext, *, events_endpoint: str, on_cpu: bool) -> dict[str, Any]:
    """Return keyword arguments for `AsyncEngineArgs`, but for the two that are vLLM objects.

    `events_endpoint` is the ZeroMQ address on which vLLM publishes KV events; replays are asked for at the same
    address with "-replay" after it. Raises `ConfigError` for a model or a block size that cannot work.
    """
    arguments: dict[str, Any] = {
        "model": str(_find_model(config)),
        "served_model_name": config.served_name,
        "max_model_len": config.model.max_model_len,
        "dtype": config.model.dtype,
        "tensor_parallel_size": config.model.tensor_parallel or _count_gpus(on_cpu=on_cpu),
        "block_size": config.engine.block_size,
        "enable_prefix_caching": True,
        "scheduling_policy": "priority",
        "disable_log_stats": True,  # its own log lines; our statistics are a logger of our own
        "kv_events_config": {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": events_endpoint,
            "replay_endpoint": f"{events_endpoint}-replay",
        },
    }
    if config.model.reasoning_parser != "none":
        arguments["reasoning_parser"] = config.model.reasoning_parser  # the engine core must see where reasoning ends
    if is_pooling(config):
        arguments |= {"runner": "pooling", "enable_prefix_caching": None}  # what the model's attention allows
    if on_cpu:
        arguments |= _cpu_arguments(config)
    if context.moves_kv:
        arguments["kv_transfer_config"] = _kv_transfer(config, on_cpu=on_cpu)
    return arguments | config.engine.vllm.args


def is_pooling(config: Config) -> bool:
    """Tell whether `engine.vllm.args` asks for an engine that embeds prompts instead of continuing them."""
    args = config.engine.vllm.args
    return args.get("runner") == "pooling" or args.get("convert") == "embed"


def build_engine_args(arguments: dict[str, Any], extra: dict[str, Any]) -> Any:
    """Return `AsyncEngineArgs` of what `engine_arguments` gave; `extra` is `engine.vllm.args`. Imports vLLM."""
    from vllm.config import KVEventsConfig, KVTransferConfig, StructuredOutputsConfig
    from vllm.engine.arg_utils import AsyncEngineArgs

    check_extra_arguments(extra, AsyncEngineArgs)
    events, transfer = arguments["kv_events_config"], arguments.get("kv_transfer_config")
    built: dict[str, Any] = {"kv_events_config": KVEventsConfig(**events)}
    if _STEP_DETAILS in {field.name for field in dataclasses.fields(AsyncEngineArgs)}:
        built[_STEP_DETAILS] = True
    if transfer is not None:
        built["kv_transfer_config"] = KVTransferConfig(**transfer)
    if isinstance(structured := extra.get("structured_outputs_config"), dict):  # vLLM makes objects of others itself
        built["structured_outputs_config"] = StructuredOutputsConfig(**structured)
    return AsyncEngineArgs(**(arguments | built))


def check_extra_arguments(args: Iterable[str], engine_args: type[Any]) -> None:
    """Raise `ConfigError` for a key of `engine.vllm.args` that vLLM does not know, or that hpcserve sets itself."""
    valid = {field.name for field in dataclasses.fields(engine_args)}
    for name in args:
        key = f"engine.vllm.args.{name}"
        if name in _OURS:
            raise ConfigError(f"{key} is set by hpcserve; use {_OURS[name]}", param=key)
        if name not in valid:
            raise ConfigError(f"{key} is no argument of vLLM's engine{did_you_mean(name, valid)}", param=key)


def _find_model(config: Config) -> Path:
    path = config.model.path
    if path is None:
        raise ConfigError("model.path is not set; name the model's directory with --model", param="model.path")
    if not (path / "config.json").is_file():
        raise ConfigError(f"model.path: {path} holds no config.json; name a model's directory", param="model.path")
    return path.absolute()


def _cpu_arguments(config: Config) -> dict[str, Any]:
    if config.engine.block_size % _CPU_BLOCK:
        raise ConfigError(
            f"engine.block_size is {config.engine.block_size}; on CPUs vLLM needs a multiple of {_CPU_BLOCK}",
            param="engine.block_size",
        )
    arguments: dict[str, Any] = {"enforce_eager": True}
    if config.model.dtype == "auto":
        arguments["dtype"] = "float32"  # bfloat16 attention dies of SIGILL on some virtual machines
    if not os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
        arguments["kv_cache_memory_bytes"] = _CPU_KV_BYTES
    return arguments


def _count_gpus(*, on_cpu: bool) -> int:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return 1 if on_cpu or not visible else len(visible.split(","))


def _kv_transfer(config: Config, *, on_cpu: bool) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "kv_connector": "NixlConnector",
        "kv_connector_module_path": "hpcserve.engine.vllm.connector",
        "kv_role": "kv_both",  # prefill and decode are labels that may change while the engine runs
        "kv_buffer_device": "cpu" if on_cpu else "cuda",
        "kv_load_failure_policy": "recompute",
    }
    if config.kv.transport == "mpi":
        arguments |= {
            "kv_connector": "TransportConnector",
            "kv_connector_module_path": "hpcserve.engine.vllm.transport_connector",
            "kv_connector_extra_config": {
                "transport": "mpi",
                "timeout_s": config.kv.timeout_s,
                "strict": config.strict,
                "rank_pid": os.getpid(),
            },
        }
    return arguments
