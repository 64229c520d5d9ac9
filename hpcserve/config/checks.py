"""What each key allows alone but not together with another. Pure; looks at no disk and no cluster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hpcserve.config.models import Config


def contradictions(config: Config, origins: Mapping[str, str]) -> list[str]:
    """Return a line for each thing that does not fit together."""
    return [
        *_model(config, origins),
        *_gpus(config, origins),
        *_kv(config, origins),
        *_cluster(config, origins),
        *_frontend(config, origins),
        *_planner(config, origins),
    ]


def _model(config: Config, origins: Mapping[str, str]) -> Iterator[str]:
    if config.engine.kind == "vllm" and config.model.path is None:
        yield (
            f"model.path is not set, and engine.kind = 'vllm' ({origins['engine.kind']}) needs it: "
            "give --model DIRECTORY, or try things out with --engine mock"
        )


def _gpus(config: Config, origins: Mapping[str, str]) -> Iterator[str]:
    tensor_parallel, gpus = config.model.tensor_parallel, config.cluster.slurm.gpus
    if config.cluster.kind in ("slurm", "mpi") and tensor_parallel and gpus and tensor_parallel > gpus:
        yield (
            f"model.tensor_parallel = {tensor_parallel} ({origins['model.tensor_parallel']}) is more than "
            f"cluster.slurm.gpus = {gpus} ({origins['cluster.slurm.gpus']}): one worker lives in one job"
        )


def _kv(config: Config, origins: Mapping[str, str]) -> Iterator[str]:
    if config.kv.transport == "mpi" and config.cluster.kind not in ("mpi", "auto"):
        yield (
            f"kv.transport = 'mpi' ({origins['kv.transport']}) is for the ranks of one allocation, but cluster.kind = "
            f"{config.cluster.kind!r} ({origins['cluster.kind']}): take --cluster mpi, or kv.transport = 'nixl'"
        )


def _cluster(config: Config, origins: Mapping[str, str]) -> Iterator[str]:
    if config.cluster.kind != "local":
        return
    for key in ("partition", "account", "walltime"):
        origin = origins[f"cluster.slurm.{key}"]
        if origin.startswith("--") and not origin.startswith("--set"):  # in files it waits for another --cluster
            yield f"{origin} is for Slurm, but cluster.kind = 'local' ({origins['cluster.kind']})"


def _frontend(config: Config, origins: Mapping[str, str]) -> Iterator[str]:
    frontend = config.frontend
    if not frontend.tcp and frontend.unix_socket is None:
        yield (
            f"frontend.tcp = false ({origins['frontend.tcp']}) leaves nothing to listen on: give --unix-socket PATH too"
        )
    given, missing = ("tls_cert", "tls_key") if frontend.tls_cert else ("tls_key", "tls_cert")
    if (frontend.tls_cert is None) != (frontend.tls_key is None):
        yield f"frontend.{given} ({origins[f'frontend.{given}']}) needs frontend.{missing}: give both or neither"


def _planner(config: Config, origins: Mapping[str, str]) -> Iterator[str]:
    least, most = config.planner.min_workers, config.planner.max_workers
    num = sum(config.pools.sizes.values())
    if least is not None and most is not None and least > most:
        yield (
            f"planner.min_workers = {least} ({origins['planner.min_workers']}) is more than "
            f"planner.max_workers = {most} ({origins['planner.max_workers']})"
        )
    if not config.planner.enabled:
        return
    if most is not None and most < num:
        yield (
            f"planner.max_workers = {most} ({origins['planner.max_workers']}) is less than the {num} workers that the "
            "pools begin with: raise it, or begin with fewer"
        )
    if least is not None and least > num:
        yield (
            f"planner.min_workers = {least} ({origins['planner.min_workers']}) is more than the {num} workers that the "
            "pools begin with: lower it, or begin with more"
        )
