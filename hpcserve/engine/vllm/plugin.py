"""What is changed in vLLM's processes: NIXL behaves, grammars of resumed requests go on (`grammar`), logs can be JSON.

vLLM loads this in every process by its plugin entry point. NIXL: no spinning on CPUs, no crash at exit.

On CPUs vLLM pins the thread that computes the model to one core, and NIXL's progress thread polls that core without
pause: a 1,000-token prompt then takes three times as long. Without both, transfers are driven by the engine's own
steps, which vLLM keeps making for as long as one is under way. Does nothing unless our engine has set the environment.
"""

from __future__ import annotations

import functools
import logging
import os

from hpcserve.engine.vllm import grammar, resumed_sampling
from hpcserve.kv.nixl_library import load_system_libnl
from hpcserve.observability.logging import configure_logging

NIXL_ON = "HPCSERVE_NIXL_ON"
"""Environment variable: "cpu" or "cuda" where an engine of ours moves KV with NIXL."""
UNPINNED = "HPCSERVE_UNPINNED"
"""Environment variable: not empty where an engine of ours moves KV on CPUs."""
LOGS_JSON = "HPCSERVE_LOGS_JSON"
"""Environment variable: the level of our own records, where an engine of ours logs JSON."""


def register() -> None:
    """Apply what the environment asks for. Safe to call more than once; the first call comes before NIXL is loaded."""
    level = os.environ.get(LOGS_JSON)
    if level:
        configure_logging(level, "json")
        logging.getLogger("vllm").setLevel(os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"))
    device = os.environ.get(NIXL_ON)
    if device:
        load_system_libnl()
    if os.environ.get(UNPINNED):
        _do_not_pin_model_thread()
    if device == "cpu":
        _do_not_poll_in_a_thread()
    if os.environ.get(grammar.RESUMES):
        grammar.resume_grammars()
        resumed_sampling.continue_sampling()


def why_no_nixl() -> str | None:
    """Return why KV cannot be moved here; None if it can. Imports vLLM and NIXL, so `register` comes first."""
    try:
        from vllm.distributed.nixl_utils import NixlWrapper

        from hpcserve.engine.vllm import connector  # noqa: F401
    except ImportError as err:
        return f"this vLLM does not fit our NIXL connector ({err})"
    return None if NixlWrapper is not None else "NIXL is not installed, or does not load"


def _do_not_pin_model_thread() -> None:
    from vllm.platforms.cpu import CpuPlatform

    CpuPlatform.discover_numa_topology = classmethod(lambda cls: [])


def _do_not_poll_in_a_thread() -> None:
    from vllm.distributed.kv_transfer.kv_connector.v1.nixl import base_worker

    make_config = base_worker.nixl_agent_config
    if make_config is not None and not isinstance(make_config, functools.partial):
        base_worker.nixl_agent_config = functools.partial(make_config, enable_prog_thread=False)
