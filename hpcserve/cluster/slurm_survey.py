"""Asks a site's Slurm what it is set to. Changes and submits nothing."""

from __future__ import annotations

import asyncio
import getpass

from hpcserve.cluster import slurm_commands
from hpcserve.cluster.slurm_settings import (
    ASSOCIATION_FIELDS,
    QOS_FIELDS,
    STATES_FORMAT,
    SlurmSettings,
    parse_mpi_types,
    parse_partition_settings,
    parse_rows,
    parse_settings,
    parse_states,
)
from hpcserve.errors import ClusterError

_TIMEOUT_S = 15.0  # for what can be done without


async def survey() -> SlurmSettings:
    """Return what this cluster is set to. Raises `ClusterError` where its controller does not answer."""
    config = parse_settings(await _ask("scontrol", "show", "config"))
    partitions, nodes, states, associations, qos, mpi_types = await asyncio.gather(
        _ask("scontrol", "show", "partition", "--oneliner"),
        slurm_commands.list_partitions(),
        _ask("sinfo", "--noheader", "--all", f"--format={STATES_FORMAT}"),
        _ask_if_there("sacctmgr", *_LIST, "show", "assoc", f"user={getpass.getuser()}", _fields(ASSOCIATION_FIELDS)),
        _ask_if_there("sacctmgr", *_LIST, "show", "qos", _fields(QOS_FIELDS)),
        _ask_if_there("srun", "--mpi=list"),
    )
    return SlurmSettings(
        config=config,
        partitions=parse_partition_settings(partitions),
        nodes=nodes,
        states=parse_states(states),
        associations=None if associations is None else parse_rows(associations, ASSOCIATION_FIELDS),
        qos=None if qos is None else {row["Name"]: row for row in parse_rows(qos, QOS_FIELDS)},
        mpi_types=parse_mpi_types(mpi_types or ""),
    )


_LIST = ("--noheader", "--parsable2", "--readonly")


def _fields(names: tuple[str, ...]) -> str:
    return f"format={','.join(names)}"


async def _ask(*command: str) -> str:
    out, _ = await slurm_commands.run_slurm(*command)
    return out


async def _ask_if_there(*command: str) -> str | None:
    """Return both outputs together, or None where the command is not there, says no, or says nothing."""
    try:
        out, said = await slurm_commands.run_slurm(*command, timeout_s=_TIMEOUT_S)
    except ClusterError:
        return None
    return out + said or None
