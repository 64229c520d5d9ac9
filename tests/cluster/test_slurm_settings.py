"""What `scontrol show config`, `show partition`, `sacctmgr` and `srun --mpi=list` print, read into values."""

from __future__ import annotations

import pytest

from hpcserve.cluster.slurm_accounting import parse_accounted
from hpcserve.cluster.slurm_settings import (
    SlurmSettings,
    parse_limit_s,
    parse_mpi_types,
    parse_names,
    parse_partition_settings,
    parse_settings,
    parse_states,
)


def test_settings_without_a_value_are_left_out() -> None:
    read = parse_settings(
        "Prolog = (null)\nKillWait                = 30 sec\nAuthInfo = socket=/run/m,cred_expire=5\n\nx\n"
    )
    assert read == {"KillWait": "30 sec", "AuthInfo": "socket=/run/m,cred_expire=5"}


def test_a_partitions_values_may_hold_spaces_and_equal_signs() -> None:
    line = "PartitionName=gpu AllowAccounts=ALL Nodes=g[1-2],h1 QoS=N/A "
    line += "TRES=cpu=64,mem=1M,gres/gpu=4 Comment=for all State=UP"
    assert parse_partition_settings(line)["gpu"] == {
        "PartitionName": "gpu",
        "AllowAccounts": "ALL",
        "Nodes": "g[1-2],h1",
        "TRES": "cpu=64,mem=1M,gres/gpu=4",
        "Comment": "for all",
        "State": "UP",
    }


def test_nodes_are_counted_by_state() -> None:
    assert parse_states("gpu|3|idle\ngpu|1|down*\ngpu|2|idle\n") == {"gpu": {"idle": 5, "down*": 1}}


@pytest.mark.parametrize(
    "listing",
    [
        "MPI plugin types are...\n\tnone\n\tpmi2\n\tpmix\nspecific pmix plugin versions available: pmix_v4\n",
        "srun: MPI types are...\nsrun: none\nsrun: pmi2\nsrun: pmix\n",
    ],
    ids=["22.05", "20.11"],
)
def test_mpi_types_of_old_and_new_versions(listing: str) -> None:
    assert parse_mpi_types(listing) == ["none", "pmi2", "pmix"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2-00:00:00", 172800),
        ("12:00:00", 43200),
        ("1-12", 129600),
        ("90", 5400),
        ("10:30", 630),
        ("UNLIMITED", None),
        ("NONE", None),
        (None, None),
        ("INFINITE", None),
    ],
)
def test_time_limits_are_read_as_slurm_reads_them(text: str | None, seconds: float | None) -> None:
    assert parse_limit_s(text) == seconds


def test_all_is_no_list_of_names() -> None:
    assert parse_names("ALL") is None
    assert parse_names(None) is None
    assert parse_names("a,b") == ["a", "b"]


def test_only_slurmdbd_is_an_accounting_that_answers() -> None:
    assert SlurmSettings(config={"AccountingStorageType": "accounting_storage/slurmdbd"}).has_accounting
    assert not SlurmSettings(config={"AccountingStorageType": "accounting_storage/none"}).has_accounting


def test_the_accountings_jobs_of_a_deployment_are_those_that_have_its_name_and_ran() -> None:
    listing = (
        "101|both-0-ab12.chat.hpcserve|3600|TIMEOUT|billing=8,cpu=8,gres/gpu:a100=4,gres/gpu=4,mem=64G,node=1\n"
        "102|both-1-cd34.chat.hpcserve|0|CANCELLED by 1000|\n"
        "103|both-0-ef56.other.hpcserve|60|COMPLETED|cpu=8,gres/gpu=1\n"
        "104|head.chat.hpcserve|7200|RUNNING|cpu=2,mem=4G\n"
        "105|interactive|9|COMPLETED|\n"
    )
    found = [(job.job_id, job.worker, job.elapsed_s, job.num_gpus) for job in parse_accounted(listing, "chat")]
    assert found == [("101", "both-0-ab12", 3600.0, 4), ("104", "head", 7200.0, None)]
