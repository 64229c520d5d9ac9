"""Keeps NIXL from spinning on CPU workers. vLLM loads it in every process through its plugin entry point.

On CPUs vLLM pins the thread that computes the model to one core, and NIXL's progress thread polls that core without
pause: a 1,000-token prompt then takes three times as long. Without both, transfers are driven by the engine's own steps,
which vLLM keeps making for as long as one is under way. Does nothing unless `ENABLE` is set, which our engine does.
"""

from __future__ import annotations

import functools
import os

ENABLE = "HPCSERVE_NIXL_WITHOUT_SPINNING"


def register() -> None:
    """Apply both patches where `ENABLE` is "1". Safe to call more than once."""
    if os.environ.get(ENABLE) == "1":
        _do_not_pin_model_thread()
        _do_not_poll_in_a_thread()


def _do_not_pin_model_thread() -> None:
    from vllm.platforms.cpu import CpuPlatform

    CpuPlatform.discover_numa_topology = classmethod(lambda cls: [])


def _do_not_poll_in_a_thread() -> None:
    from vllm.distributed.kv_transfer.kv_connector.v1.nixl import base_worker

    make_config = base_worker.nixl_agent_config
    if make_config is not None and not isinstance(make_config, functools.partial):
        base_worker.nixl_agent_config = functools.partial(make_config, enable_prog_thread=False)
