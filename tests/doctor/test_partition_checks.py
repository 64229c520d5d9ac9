"""The partition's limits against what would be asked for, on settings of real clusters' shapes."""

from __future__ import annotations

from typing import Any

import pytest

from hpcserve.cluster.slurm_settings import SlurmSettings
from hpcserve.doctor.check import Check, Outcome
from hpcserve.doctor.partition_checks import check_partition, find, walltime_s
from tests.doctor.conftest import make_config


def checks(settings: SlurmSettings, pools: dict[str, Any] | None = None, **slurm: Any) -> dict[str, Check]:
    config = make_config(pools=pools, **slurm)
    partition = find(settings, config)
    assert not isinstance(partition, Check), partition
    return {check.name: check for check in check_partition(settings, config, partition)}


def test_a_partition_that_does_not_exist_is_named_with_those_that_do(large: SlurmSettings) -> None:
    check = find(large, make_config(partition="gpux"))
    assert isinstance(check, Check)
    assert check.outcome is Outcome.PROBLEM
    assert check.found == "partition 'gpux' does not exist; partitions here: cpu, gpu, scavenge"
    assert "--partition" in check.change


def test_a_walltime_above_the_limit_comes_with_the_limit_as_sbatch_takes_it(large: SlurmSettings) -> None:
    check = checks(large, walltime="3-00:00:00")["walltime"]
    assert check.outcome is Outcome.PROBLEM
    assert check.found == "3-00:00:00 is above MaxTime of 'gpu': 2-00:00:00"
    assert check.change.startswith("--walltime 2-00:00:00")


def test_without_a_walltime_the_partitions_short_default_is_warned_about(large: SlurmSettings) -> None:
    check = checks(large)["walltime"]
    assert check.outcome is Outcome.WARNING
    assert "DefaultTime, 60 min" in check.found
    assert "MaxTime is 2-00:00:00" in check.change


def test_a_walltime_within_the_limit_is_fine_and_one_of_minutes_is_warned_about(large: SlurmSettings) -> None:
    assert checks(large, walltime="12:00:00")["walltime"].outcome is Outcome.OK
    assert checks(large, walltime="00:10:00")["walltime"].outcome is Outcome.WARNING


def test_a_partition_that_is_draining_or_has_no_usable_node_will_not_work(large: SlurmSettings) -> None:
    cpu = checks(large, partition="cpu", account="proj-0042", gpu_request="none")
    assert (cpu["partition"].outcome, cpu["nodes"].outcome) == (Outcome.PROBLEM, Outcome.PROBLEM)
    assert cpu["partition"].found == "'cpu' is DRAIN"
    assert checks(large, partition="scavenge")["nodes"].found == "none of 2 can be used now: 2 down*"
    gpu = checks(large)["nodes"]
    assert (gpu.outcome, gpu.found) == (Outcome.OK, "3 of 4 can be used: 2 mixed-, 1 drained, 1 allocated")


def test_more_workers_than_the_partition_holds_will_not_work(large: SlurmSettings) -> None:
    check = checks(large, {"workers": 5}, exclusive=True)["room"]
    assert check.outcome is Outcome.PROBLEM
    assert check.found == "5 nodes are more than partition 'gpu' has: 4"
    assert checks(large, {"workers": 4}, exclusive=True)["room"].outcome is Outcome.OK


@pytest.mark.parametrize(
    ("partition", "account", "outcome", "words"),
    [
        ("gpu", None, Outcome.OK, "yours: proj-0042, proj-0043"),
        ("gpu", "proj-0099", Outcome.PROBLEM, "'proj-0099' is none of yours: proj-0042, proj-0043"),
        ("cpu", "proj-0043", Outcome.OK, "proj-0043"),
    ],
)
def test_the_account_has_to_be_ones_own(
    large: SlurmSettings, partition: str, account: str | None, outcome: Outcome, words: str
) -> None:
    check = checks(large, partition=partition, account=account)["account"]
    assert (check.outcome, words in check.found) == (outcome, True), check.found


def test_a_partition_for_other_accounts_or_groups_will_not_work(large: SlurmSettings, small: SlurmSettings) -> None:
    others = [{"Account": "proj-0099"}]
    strangers = SlurmSettings(
        config=large.config, partitions=large.partitions, nodes=large.nodes, states=large.states, associations=others
    )
    check = checks(strangers, partition="cpu")["account"]
    assert check.outcome is Outcome.PROBLEM
    assert "allows proj-0042, proj-0043; yours: proj-0099" in check.found
    assert "for the groups wheel, nobody-has-this" in checks(small)["account"].found


def test_how_long_a_worker_lives_is_what_is_asked_for_then_the_default_then_the_limit(large: SlurmSettings) -> None:
    limits = large.partitions
    assert walltime_s(limits["gpu"], make_config(walltime="2:00:00")) == 7200
    assert walltime_s(limits["gpu"], make_config()) == 3600
    assert walltime_s(limits["scavenge"], make_config()) == 43200
    assert walltime_s(limits["cpu"], make_config()) is None
