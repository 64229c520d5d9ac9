"""Whether the workers fit the partition, by the size of its nodes. Pure; what runs there now does not count."""

from __future__ import annotations

from collections.abc import Mapping

from hpcserve.cluster.slurm_output import Node, Partition
from hpcserve.cluster.slurm_script import parse_memory_mb
from hpcserve.config.models import SlurmConfig
from hpcserve.errors import ClusterError


def find_partition(partitions: Mapping[str, Partition], name: str | None) -> Partition:
    """Return the partition called `name`, or the default one. Raises `ClusterError` naming those there are."""
    there_are = f"partitions here: {', '.join(sorted(partitions)) or 'none'}"
    if name is not None:
        if name not in partitions:
            raise ClusterError(f"partition {name!r} does not exist; {there_are}")
        return partitions[name]
    for partition in partitions.values():
        if partition.is_default:
            return partition
    raise ClusterError(f"this cluster has no default partition; set cluster.slurm.partition ({there_are})")


def refuse_without_room(partition: Partition, slurm: SlurmConfig, num_workers: int, num_nodes: int | None) -> None:
    """Raise `ClusterError` if the partition has too few nodes, or its nodes cannot hold so many workers at once."""
    there_are = len(partition.nodes)
    if num_nodes is not None and num_nodes > there_are:
        raise ClusterError(f"{num_nodes} nodes are more than partition {partition.name!r} has: {there_are}")
    room = sum(_room(node, slurm) for node in partition.nodes)
    if room < num_workers:
        raise ClusterError(
            f"{num_workers} workers are more than partition {partition.name!r} has room for: {room} on {there_are} "
            f"nodes{_largest(partition)}, with {_demand(slurm)} for each worker"
        )


def _room(node: Node, slurm: SlurmConfig) -> int:
    """Return how many workers an empty node holds."""
    limits = [node.cpus // slurm.cores]
    if slurm.requested_gpus:
        limits.append(_gpus(node, slurm.gpu_type) // slurm.requested_gpus)
    if slurm.memory:
        limits.append(node.memory_mb // max(1, parse_memory_mb(slurm.memory)))
    if slurm.exclusive or any("--exclusive" in directive for directive in slurm.extra_directives):
        limits.append(1)
    return min(limits)


def _gpus(node: Node, kind: str | None) -> int:
    return sum(node.gpus.values()) if kind is None else node.gpus.get(kind, 0)


def _demand(slurm: SlurmConfig) -> str:
    parts = [f"{slurm.cores} cores"]
    if slurm.exclusive:
        parts.append("a node of its own")
    if slurm.requested_gpus:
        parts.append(f"{slurm.requested_gpus} GPUs" + (f" of type {slurm.gpu_type}" if slurm.gpu_type else ""))
    if slurm.memory:
        parts.append(slurm.memory)
    return " and ".join(parts) if len(parts) < 3 else ", ".join(parts)


def _largest(partition: Partition) -> str:
    if not partition.nodes:
        return ""
    node = max(partition.nodes, key=lambda each: (sum(each.gpus.values()), each.cpus, each.memory_mb))
    gpus = ", ".join(f"{num} GPUs{f' of type {kind}' if kind else ''}" for kind, num in node.gpus.items())
    return f" of up to {node.cpus} cores{f', {gpus}' if gpus else ''} and {node.memory_mb} MiB"
