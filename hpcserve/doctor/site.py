"""What was found, as a configuration file that `hpcserve up --config` takes. Pure; guesses nothing unseen."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import datetime

from hpcserve.cluster.slurm_output import Node, Partition
from hpcserve.cluster.slurm_settings import SlurmSettings, parse_limit_s
from hpcserve.doctor.check import Outcome
from hpcserve.doctor.durations import as_walltime
from hpcserve.doctor.examine import Examination
from hpcserve.doctor.host import HostReport
from hpcserve.doctor.host_checks import fast_interfaces
from hpcserve.doctor.slurm_checks import check_memory, counts_memory

_HEAD = """\
# What `hpcserve doctor` found on {host}, {day:%Y-%m-%d %H:%M}. Read it, and change what you know better.
# hpcserve up --config THIS-FILE; or put it into ~/.config/hpcserve/config.yaml, which is read without --config.
"""
_MEMORY_SHARE = 0.9  # of what is the worker's part of a node

_Line = tuple[str, object, str]  # key, value, comment


def render_site(seen: Examination) -> str:
    """Return the text of a YAML file. Options that were given are in it, too."""
    assert seen.here is not None
    lines = [_HEAD.format(host=seen.here.host, day=datetime.fromtimestamp(seen.here.now)), "cluster:"]
    lines += [_written("  ", *line) for line in _cluster(seen, seen.here)]
    if seen.settings is not None and seen.partition is not None:
        lines.append("  slurm:")
        lines += [_written("    ", *line) for line in _slurm(seen, seen.settings, seen.partition)]
    return "\n".join(lines) + "\n"


def _written(indent: str, key: str, value: object, comment: str) -> str:
    line = f"{indent}{key}: {json.dumps(value)}"  # JSON is YAML
    return f"{line:<44} # {comment}" if comment else line


def _cluster(seen: Examination, here: HostReport) -> Iterator[_Line]:
    yield "kind", seen.kind, ""
    interface = _interface(seen, here)
    if interface is not None:
        there_are = ", ".join(f"{name} {address}" for name, address in here.interfaces.items())
        yield "interface", interface, f"on {here.host}: {there_are}"
    if seen.config.cluster.scratch is not None:
        yield "scratch", str(seen.config.cluster.scratch), ""


def _interface(seen: Examination, here: HostReport) -> str | None:
    """Return the one that was asked for, else a fast one that all hosts have, else one that others can reach."""
    hosts = [here, *((visit.report for visit in seen.probe.visits) if seen.probe else ())]
    common = [name for name in here.interfaces if all(name in host.interfaces for host in hosts)]
    if seen.config.cluster.interface in common:
        return seen.config.cluster.interface
    if seen.kind != "slurm":
        return None
    fast = [name for name in fast_interfaces(here) if name in common]
    if fast:
        return fast[0]
    is_reachable = here.address and not here.address.startswith("127.")
    others = [name for name in common if not here.interfaces[name].startswith("127.")]
    return None if is_reachable or not others else others[0]


def _slurm(seen: Examination, settings: SlurmSettings, partition: Partition) -> Iterator[_Line]:
    slurm, limits = seen.config.cluster.slurm, settings.partitions.get(partition.name, {})
    others = ", ".join(sorted(name for name in settings.nodes if name != partition.name))
    yield "partition", partition.name, f"others: {others}" if others else ""
    accounts = sorted({row["Account"] for row in settings.associations or () if row.get("Account")})
    if slurm.account or accounts:
        yield "account", slurm.account or accounts[0], f"yours: {', '.join(accounts)}" if accounts else ""
    if slurm.qos:
        yield "qos", slurm.qos, ""
    if slurm.constraint:
        yield "constraint", slurm.constraint, ""
    most_s = parse_limit_s(limits.get("MaxTime"))
    if slurm.walltime or most_s:
        said = f"MaxTime {limits['MaxTime']}" if most_s else "no limit in this partition"
        yield "walltime", slurm.walltime or as_walltime(most_s or 0.0), said
    yield from _size(seen, settings, partition)
    for key, value in (("extra_directives", slurm.extra_directives), ("prologue", slurm.prologue)):
        if value:
            yield key, value, ""
    yield "modules", slurm.modules, "" if slurm.modules else "such as [gcc/12.3, cuda/13.0]"
    yield "python", slurm.python or sys.executable, "has to be seen by the compute nodes"


def _size(seen: Examination, settings: SlurmSettings, partition: Partition) -> Iterator[_Line]:
    """Return what one worker asks for: of a node, as large a part as of its GPUs."""
    slurm, limits = seen.config.cluster.slurm, settings.partitions.get(partition.name, {})
    node = max(partition.nodes, key=lambda each: (sum(each.gpus.values()), each.cpus, each.memory_mb), default=None)
    if node is None:
        return
    num_gpus = sum(node.gpus.values())
    share = min(1.0, (slurm.requested_gpus or num_gpus) / num_gpus) if num_gpus else 1.0
    is_given = "cores" in slurm.model_fields_set
    cores = slurm.cores if is_given else max(1, int(node.cpus * share)) if num_gpus else slurm.cores
    yield "cores", cores, f"of a worker; a node has {node.cpus}"
    if num_gpus and slurm.gpu_request != "none":
        yield "gpus", slurm.requested_gpus or num_gpus, f"of a worker; a node has {num_gpus}"
        yield "gpu_request", _style(settings, slurm.gpu_request), settings.config.get("SelectType", "")
        kinds = [kind for kind in node.gpus if kind]
        if slurm.gpu_type or kinds:
            yield "gpu_type", slurm.gpu_type or kinds[0], f"there are: {', '.join(_kinds(partition))}"
    else:
        yield "gpu_request", "none", "the nodes have no GPUs" if not num_gpus else ""
    yield from _memory(seen, settings, partition, node, share, counts=counts_memory(settings, limits))


def _style(settings: SlurmSettings, asked: str) -> str:
    return asked if "cons_tres" in settings.config.get("SelectType", "") else "gres"


def _kinds(partition: Partition) -> list[str]:
    return sorted({kind for node in partition.nodes for kind in node.gpus if kind})


def _memory(
    seen: Examination, settings: SlurmSettings, partition: Partition, node: Node, share: float, *, counts: bool
) -> Iterator[_Line]:
    slurm = seen.config.cluster.slurm
    skips = list(slurm.skip_directives)
    if not counts and "--mem" not in skips:
        yield "skip_directives", [*skips, "--mem"], "this cluster does not count memory"
        return
    if skips:
        yield "skip_directives", skips, ""
    if slurm.memory:
        yield "memory", slurm.memory, f"of a worker; a node has {node.memory_mb // 1024} GiB"
        return
    here = seen.here.model_bytes if seen.here else None
    if check_memory(settings, seen.config, partition, here).outcome is Outcome.WARNING:
        fair = max(1, int(node.memory_mb * share * _MEMORY_SHARE) // 1024)
        yield "memory", f"{fair}GB", "the partition's default is small"
