"""How the deployment of a run is brought up."""

from __future__ import annotations

from pathlib import Path

from hpcserve.engine.tiny_model import make_tiny_model
from tests.chaos.plan import Plan

NAME = "chaos"
_SPEEDUP = 0.4  # of the mock: 70 tokens/s a stream, which is little work for the machine
_MAX_LOSSES = 20  # of one request; on a node a hundred times as many: more die here in a minute than in months


def up_options(plan: Plan, directory: Path) -> list[str]:
    """Return the options of `hpcserve up`."""
    scenario = plan.scenario
    options = [
        "--cluster", "slurm", "--engine", scenario.engine, "--port", "0", "--frontends", str(scenario.num_frontends),
        "--nodes", str(scenario.num_workers), "--set", f"frontend.max_attempts={_MAX_LOSSES}",
        "--set", f"renewal.exclude_after={_MAX_LOSSES * 100}", "--set", "cluster.drain_timeout_s=5",
        "--set", "security.auth=on",
    ]  # fmt: skip
    if scenario.is_disaggregated:
        options += ["--mode", "disaggregated"]
    if scenario.walltime:
        options += ["--walltime", scenario.walltime]
    if scenario.engine == "mock":
        return [*options, "--set", f"engine.mock.speedup={_SPEEDUP}"]
    model = directory / "model"
    make_tiny_model(model)
    return [
        *options, "--model", str(model), "--set", "model.name=tiny", "--set", "model.max_model_len=4096",
        "--set", "engine.vllm.in_process=false",
    ]  # fmt: skip
