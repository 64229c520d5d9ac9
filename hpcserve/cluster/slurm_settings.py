"""What a site's Slurm is set to, in `scontrol`'s and `sacctmgr`'s words. Pure; `slurm_commands` runs the commands."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hpcserve.cluster.slurm_output import Partition

ASSOCIATION_FIELDS = ("Account", "Partition", "QOS", "DefaultQOS", "MaxJobs", "MaxSubmit")
QOS_FIELDS = ("Name", "MaxWall", "MaxJobsPU", "MaxSubmitPU", "MaxTRESPU")
STATES_FORMAT = "%R|%D|%T"  # of sinfo: partition, number of nodes, their state

_NOTHING = ("", "(null)", "N/A", "NONE", "NONE SET", "n/a")
_LIMIT = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
_KEY = re.compile(r"(?:^|\s)([A-Za-z_]\w*(?:\[\d+\])?)=")


@dataclass(frozen=True, kw_only=True)
class SlurmSettings:
    """What one cluster is set to, as far as it tells."""

    config: Mapping[str, str] = field(default_factory=dict)  # of slurm.conf
    partitions: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # the settings of each, by name
    nodes: Mapping[str, Partition] = field(default_factory=dict)  # the same partitions' nodes
    states: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # nodes in each state, by partition
    associations: Sequence[Mapping[str, str]] | None = None  # this user's; None: it does not tell
    qos: Mapping[str, Mapping[str, str]] | None = None  # limits, by name; None: it does not tell
    mpi_types: Sequence[str] = ()  # of `srun --mpi`

    @property
    def version(self) -> str:
        """The version of the controller."""
        return self.config.get("SLURM_VERSION", "of unknown version")

    @property
    def has_accounting(self) -> bool:
        """Whether `sacct` answers here."""
        return "slurmdbd" in self.config.get("AccountingStorageType", "")


def parse_settings(listing: str) -> dict[str, str]:
    """Read `scontrol show config`; what is not set is left out."""
    pairs = (line.partition("=") for line in listing.splitlines())
    return {key.strip(): value.strip() for key, sep, value in pairs if sep and value.strip() not in _NOTHING}


def parse_partition_settings(listing: str) -> dict[str, dict[str, str]]:
    """Read `scontrol show partition --oneliner`, by name."""
    records = [_pairs(line) for line in listing.splitlines()]
    return {record["PartitionName"]: record for record in records if "PartitionName" in record}


def parse_states(listing: str) -> dict[str, dict[str, int]]:
    """Read `sinfo --noheader --format=STATES_FORMAT`: nodes by state, by partition."""
    states: dict[str, dict[str, int]] = {}
    for line in listing.splitlines():
        partition, num, state = line.strip().split("|", 2)
        of_partition = states.setdefault(partition, {})
        of_partition[state] = of_partition.get(state, 0) + int(num)
    return states


def parse_rows(listing: str, fields: Sequence[str]) -> list[dict[str, str]]:
    """Read the lines of a command that was run with `--parsable2`."""
    return [dict(zip(fields, line.split("|"), strict=False)) for line in listing.splitlines() if line.strip()]


def parse_mpi_types(listing: str) -> list[str]:
    """Read `srun --mpi=list`, whose form changes from version to version."""
    words = [line.strip().removeprefix("srun: ") for line in listing.splitlines()]
    return [word for word in words if re.fullmatch(r"[a-z][\w/]*", word)]


def parse_limit_s(text: str | None) -> float | None:
    """Read a time limit as Slurm writes it and takes it, in seconds; None where there is none, or it says nothing."""
    match = _LIMIT.fullmatch((text or "").strip())
    if match is None:
        return None
    days, *clock = match.groups()
    numbers = [int(part) for part in clock if part is not None]
    if days is None and len(numbers) < 3:  # minutes, or minutes and seconds (sbatch(1)); hours are first otherwise
        numbers.insert(0, 0)
    hours, minutes, seconds = (*numbers, 0, 0)[:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60.0 + seconds


def parse_names(text: str | None) -> list[str] | None:
    """Read a list such as AllowAccounts; None stands for all."""
    return None if text is None or text in _NOTHING or text.upper() == "ALL" else text.split(",")


def _pairs(line: str) -> dict[str, str]:
    """Split `A=1 B=two words C=3`: a value ends where the next key begins."""
    found = list(_KEY.finditer(line))
    ends = [match.start() for match in found[1:]] + [len(line)]
    values = (line[match.end() : end].strip() for match, end in zip(found, ends, strict=True))
    return {match[1]: value for match, value in zip(found, values, strict=True) if value not in _NOTHING}
