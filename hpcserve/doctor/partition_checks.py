"""The partition that workers would run in: its limits against what would be asked for. Pure."""

from __future__ import annotations

import grp
import os
from collections.abc import Iterator, Mapping, Sequence

from hpcserve.cluster.slurm_output import Partition
from hpcserve.cluster.slurm_room import find_partition, refuse_without_room
from hpcserve.cluster.slurm_settings import SlurmSettings, parse_limit_s, parse_names
from hpcserve.config.models import Config
from hpcserve.doctor.check import Check, good, problem, skipped, warning
from hpcserve.doctor.durations import as_walltime, in_words
from hpcserve.errors import ClusterError

_USABLE = ("idle", "mixed", "allocated", "completing", "planned", "reserved")  # sinfo(1), NODE STATE CODES
_SHORT_S = 1800.0


def find(settings: SlurmSettings, config: Config) -> Partition | Check:
    """Return the partition, or the problem with its name."""
    try:
        return find_partition(settings.nodes, config.cluster.slurm.partition)
    except ClusterError as err:
        return problem("partition", err.message, "--partition NAME, or cluster.slurm.partition")


def check_partition(settings: SlurmSettings, config: Config, partition: Partition) -> Iterator[Check]:
    """Check everything that the partition alone decides."""
    limits = settings.partitions.get(partition.name, {})
    yield _state(limits, partition)
    yield _nodes(settings.states.get(partition.name, {}), partition)
    yield _room(config, partition)
    yield check_walltime(limits, config, partition.name)
    yield _access(limits, settings.associations, config)
    if limits.get("MinNodes", "0").isdecimal() and int(limits.get("MinNodes", "0")) > 1:
        found = f"a job has to take {limits['MinNodes']} nodes at least (MinNodes), and a worker's takes one"
        yield problem("job size", found, "another --partition, or `--cluster mpi` in an allocation of your own")


def check_walltime(limits: Mapping[str, str], config: Config, partition: str) -> Check:
    """Compare the walltime with the partition's limit, and say what it is where none is asked for."""
    asked, most = config.cluster.slurm.walltime, parse_limit_s(limits.get("MaxTime"))
    asked_s = parse_limit_s(asked)
    if asked is not None and asked_s is not None:
        if most is not None and asked_s > most:
            change = f"--walltime {as_walltime(most)}, or a partition with a longer MaxTime"
            return problem("walltime", f"{asked} is above MaxTime of {partition!r}: {limits['MaxTime']}", change)
        return _short(asked_s, config) or good("walltime", f"{asked}; MaxTime {limits.get('MaxTime', 'is not told')}")
    given_s = parse_limit_s(limits.get("DefaultTime")) or most
    if given_s is None:
        return good("walltime", "none asked for, and the partition sets no limit")
    source = "DefaultTime" if parse_limit_s(limits.get("DefaultTime")) else "MaxTime"
    found = f"none asked for: workers get the partition's {source}, {in_words(given_s)}"
    if (most is not None and given_s * 2 <= most) or given_s < _SHORT_S:
        top = f" (MaxTime is {limits['MaxTime']})" if most is not None else ""
        return warning("walltime", found, f"--walltime, as long as you may{top}: every renewal loads the model anew")
    return good("walltime", found)


def walltime_s(limits: Mapping[str, str], config: Config) -> float | None:
    """Return how long a worker's job may run; None: there is no limit, or none is known."""
    own = parse_limit_s(config.cluster.slurm.walltime)
    return own or parse_limit_s(limits.get("DefaultTime")) or parse_limit_s(limits.get("MaxTime"))


def _short(seconds: float, config: Config) -> Check | None:
    if not config.renewal.enabled or seconds >= _SHORT_S:
        return None
    found = f"{in_words(seconds)}: much of it goes into loading the model, as each worker is renewed before its end"
    return warning("walltime", found, "--walltime of an hour or more")


def _state(limits: Mapping[str, str], partition: Partition) -> Check:
    state = limits.get("State", "UP")
    if state != "UP":
        return problem("partition", f"{partition.name!r} is {state}", "wait, or another --partition")
    is_default = " (the default)" if partition.is_default else ""
    largest = max(partition.nodes, key=lambda node: (sum(node.gpus.values()), node.cpus), default=None)
    size = ""
    if largest is not None:
        gpus = " + ".join(f"{num} {kind or 'GPUs'}" for kind, num in largest.gpus.items()) or "no GPUs"
        size = f", nodes of up to {largest.cpus} cores, {largest.memory_mb // 1024} GiB, {gpus}"
    return good("partition", f"{partition.name!r}{is_default} is up{size}")


def _nodes(states: Mapping[str, int], partition: Partition) -> Check:
    usable = sum(
        num for state, num in states.items() if state.rstrip("*~#!%$@^-+").lower() in _USABLE and "*" not in state
    )
    said = ", ".join(f"{num} {state}" for state, num in sorted(states.items(), key=lambda each: -each[1]))
    if not states:
        return skipped("nodes", "sinfo tells nothing of their states")
    if not usable:
        return problem("nodes", f"none of {len(partition.nodes)} can be used now: {said}", "`sinfo -R` says why")
    return good("nodes", f"{usable} of {len(partition.nodes)} can be used: {said}")


def _room(config: Config, partition: Partition) -> Check:
    num = sum(config.pools.sizes.values())
    slurm = config.cluster.slurm
    try:
        refuse_without_room(partition, slurm, num, num if slurm.exclusive else None)
    except ClusterError as err:
        return problem(
            "room", err.message, "fewer workers (--nodes, --prefill, --decode), or less for each (cluster.slurm)"
        )
    fits = "1 worker fits" if num == 1 else f"{num} workers fit"
    return good("room", f"{fits} when the partition is empty")


def _access(limits: Mapping[str, str], associations: Sequence[Mapping[str, str]] | None, config: Config) -> Check:
    groups = parse_names(limits.get("AllowGroups"))
    if groups is not None and not {*groups} & _own_groups():
        found = f"the partition is for the groups {', '.join(groups)}, and you are in none"
        return problem("account", found, "another --partition, or ask your site")
    allowed, denied = parse_names(limits.get("AllowAccounts")), parse_names(limits.get("DenyAccounts")) or []
    own = sorted({row["Account"] for row in associations or () if row.get("Account")})
    asked = config.cluster.slurm.account
    if asked and associations and asked not in own:
        return problem("account", f"{asked!r} is none of yours: {', '.join(own)}", f"--account {own[0]}")
    mine = [asked] if asked else own
    usable = [name for name in mine if (allowed is None or name in allowed) and name not in denied]
    if mine and not usable:
        here = f"allows {', '.join(allowed)}" if allowed is not None else f"denies {', '.join(denied)}"
        return problem(
            "account", f"the partition {here}; yours: {', '.join(mine)}", "--account, or another --partition"
        )
    if allowed is not None and not mine:
        return warning("account", f"the partition is for {', '.join(allowed)}", "--account, with one of them")
    yours = f" (yours: {', '.join(own)})" if own else ""
    return good("account", f"{asked or 'your default'}{yours}")


def _own_groups() -> set[str]:
    names = set()
    for number in {os.getegid(), *os.getgroups()}:
        try:
            names.add(grp.getgrgid(number).gr_name)
        except KeyError:
            continue
    return names
