"""Runs every check that a configuration calls for, in order. What each means is in the other files."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from hpcserve.cluster import resolve_kind
from hpcserve.cluster.head_job import check_head
from hpcserve.cluster.slurm_output import Partition
from hpcserve.cluster.slurm_settings import SlurmSettings
from hpcserve.cluster.slurm_survey import survey
from hpcserve.config.models import Config
from hpcserve.doctor import modules, partition_checks
from hpcserve.doctor.check import Check, good, grouped, problem, skipped, warning
from hpcserve.doctor.estimate import Estimate, estimate
from hpcserve.doctor.here import look_here
from hpcserve.doctor.host import HostReport
from hpcserve.doctor.host_checks import check_limits, check_network, check_storage
from hpcserve.doctor.node_checks import check_nodes
from hpcserve.doctor.probe_job import ProbeResult, probe_nodes
from hpcserve.doctor.slurm_checks import check_ends, check_gpus, check_jobs, check_memory
from hpcserve.doctor.software_checks import check_gpus as check_host_gpus
from hpcserve.doctor.software_checks import check_libraries, check_python, needs_libraries
from hpcserve.errors import ClusterError
from hpcserve.state import StateDir, state_root

_COMMANDS = ("sbatch", "squeue", "scancel", "sinfo", "scontrol")
_SLOW_S = 5.0


@dataclass(kw_only=True)
class Examination:
    """What was found, as far as it has gone."""

    config: Config
    kind: Literal["local", "slurm", "mpi"]
    checks: list[Check] = field(default_factory=list)
    settings: SlurmSettings | None = None
    partition: Partition | None = None
    here: HostReport | None = None
    probe: ProbeResult | None = None
    estimate: Estimate | None = None


async def examine(
    config: Config,
    *,
    wrong: Sequence[str] = (),
    num_probed: int = 0,
    probe_timeout_s: float = 300.0,
    on_checks: Callable[[list[Check]], None] = lambda _: None,
    on_progress: Callable[[str], None] = lambda _: None,
) -> Examination:
    """Check everything; groups are handed to `on_checks` as they are done.

    `wrong` says what is wrong with `config`, and what to do about it. A job is submitted only if `num_probed` nodes are
    to be looked at.
    """
    on_progress("looking at Slurm and this host" + "; its libraries take some seconds" * needs_libraries(config))
    seen = Examination(config=config, kind=await asyncio.to_thread(resolve_kind, config))

    def note(group: str, checks: Iterable[Check]) -> None:
        named = grouped(group, checks)
        seen.checks += named
        if named:
            on_checks(named)

    note("configuration", (problem("options", line, "") for line in wrong))
    looking = asyncio.create_task(look_here(config, state_root()))
    try:
        await _look_at_slurm(seen, note)
        seen.here = await looking
    finally:
        looking.cancel()
    _judge_slurm(seen, note)
    note("this host", _this_host(seen, is_probed=num_probed > 0))
    note("modules", await modules.check_modules(config, is_slurm=seen.kind == "slurm"))
    seen.estimate = await estimate(config, seen.settings)
    if seen.partition is not None:
        note("sbatch --test-only", await _try_jobs(config, seen.estimate))
    await _look_at_nodes(seen, num_probed, probe_timeout_s, note, on_progress)
    return seen


_Note = Callable[[str, Iterable[Check]], None]


async def _look_at_slurm(seen: Examination, note: _Note) -> None:
    if seen.kind != "slurm":
        if seen.config.cluster.kind == "auto":
            note("Slurm", [skipped("controller", "no Slurm answers here: workers would run on this machine", "")])
        return
    missing = [command for command in _COMMANDS if shutil.which(command) is None]
    if missing:
        change = "run this on a login node, load the site's Slurm module, or --cluster local"
        note("Slurm", [problem("commands", f"not on PATH: {', '.join(missing)}", change)])
        return
    began = time.monotonic()
    try:
        seen.settings = await survey()
    except ClusterError as err:
        note("Slurm", [problem("controller", err.message, "SLURM_CONF, or wait until Slurm is up again")])
        return
    took_s = time.monotonic() - began
    found = f"Slurm {seen.settings.version} answers in {took_s:.1f} s"
    slow = warning("controller", found, "it is busy: jobs come and go more slowly than asked for")
    note("Slurm", [slow if took_s > _SLOW_S else good("controller", found)])


def _judge_slurm(seen: Examination, note: _Note) -> None:
    if seen.settings is None:
        return
    settings, config = seen.settings, seen.config
    partition = partition_checks.find(settings, config)
    note("Slurm", check_jobs(settings, config))
    note("Slurm", [_accounting(settings), _mpi_types(settings)])
    if isinstance(partition, Check):
        note("partition", [partition])
        return
    seen.partition = partition
    model_bytes = seen.here.model_bytes if seen.here else None
    group = f"partition {partition.name}"
    note(group, partition_checks.check_partition(settings, config, partition))
    note(group, check_gpus(settings, config, partition))
    note(group, [check_memory(settings, config, partition, model_bytes)])
    note(group, check_ends(settings, config, partition))


def _accounting(settings: SlurmSettings) -> Check:
    if settings.has_accounting:
        return good("accounting", "there is one: receipts are compared with sacct")
    return good("accounting", "none: receipts are hpcserve's own count")


def _mpi_types(settings: SlurmSettings) -> Check:
    found = ", ".join(settings.mpi_types)
    return good("srun --mpi", found) if found else skipped("srun --mpi", "srun does not list its types")


def _this_host(seen: Examination, *, is_probed: bool) -> Iterable[Check]:
    here, config, root = seen.here, seen.config, str(state_root())
    assert here is not None
    is_slurm = seen.kind == "slurm"
    yield check_python(here, None)
    yield from check_libraries(here.libraries, config, on_gpus=_on_gpus(seen, here))
    if not is_slurm:
        yield from check_host_gpus(here, config)
    yield from check_network(here, config, is_spread=is_slurm)
    yield from check_storage(here, config, root, must_be_shared=is_slurm and not is_probed)
    yield from check_limits(here, runs_head=config.cluster.slurm.head == "here")


def _on_gpus(seen: Examination, here: HostReport) -> bool | None:
    """Return whether workers would compute on GPUs; None where that cannot be told beforehand."""
    if seen.kind != "slurm":
        return bool(here.gpus)
    if seen.partition is None:
        return None
    has_gpus = any(node.gpus for node in seen.partition.nodes)
    slurm = seen.config.cluster.slurm
    if slurm.gpu_request == "none":  # some partitions hand them out unasked
        return None if has_gpus else False
    return has_gpus and (slurm.requested_gpus > 0 or slurm.exclusive)


async def _try_jobs(config: Config, found: Estimate) -> list[Check]:
    """Say whether Slurm would take the jobs; it was asked for the estimate."""
    change = "what Slurm names: account, QOS, constraint, or a line of extra_directives"
    refused = found.start.problem
    checks = [problem("workers", refused, change) if refused else good("workers", "Slurm would take such jobs")]
    if config.cluster.slurm.head == "job":
        try:
            await check_head(config, StateDir.of(config.name).path)
        except ClusterError as err:
            checks.append(problem("head", err.message, "cluster.slurm.head_partition, head_walltime, head_memory"))
        else:
            checks.append(good("head", "Slurm would take the head's job"))
    return checks


async def _look_at_nodes(
    seen: Examination, num: int, timeout_s: float, note: _Note, on_progress: Callable[[str], None]
) -> None:
    if seen.kind != "slurm":
        return
    if not num:
        why = "not looked at: GPUs, libraries, model, state directory, ports and clock are only known for this host"
        note("compute nodes", [skipped("nodes", why, "--probe 2: a job of two nodes and a few minutes looks")])
        return
    if seen.partition is None or seen.here is None:
        note("compute nodes", [skipped("nodes", "there is no partition to look at")])
        return
    with_gpu = bool(_on_gpus(seen, seen.here))
    try:
        seen.probe = await probe_nodes(
            seen.config, seen.here, state_root(), num, with_gpu=with_gpu, timeout_s=timeout_s, on_progress=on_progress
        )
    except (ClusterError, OSError) as err:
        note("probe job", [problem("job", str(err), "the same would happen to workers' jobs: change what Slurm names")])
        return
    for check in check_nodes(seen.probe, seen.config, seen.here, str(state_root()), num):
        note(check.group, [msgspec.structs.replace(check)])
