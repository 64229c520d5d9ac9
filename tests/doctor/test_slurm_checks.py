"""What a cluster is set to against what would be asked of it: GPUs, memory, jobs, preemption."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hpcserve.cluster.slurm_settings import SlurmSettings
from hpcserve.config.models import Config
from hpcserve.doctor.check import Check, Outcome
from hpcserve.doctor.slurm_checks import check_ends, check_gpus, check_jobs, check_memory
from tests.doctor.conftest import make_config


def gpus(settings: SlurmSettings, partition: str = "gpu", **slurm: Any) -> dict[str, Check]:
    found = check_gpus(settings, make_config(partition=partition, **slurm), settings.nodes[partition])
    return {check.name: check for check in found}


def memory(settings: SlurmSettings, config: Config, partition: str, model_bytes: int | None = None) -> Check:
    return check_memory(settings, config, settings.nodes[partition], model_bytes)


def test_gpus_of_a_partition_without_any_name_those_that_have_some(large: SlurmSettings) -> None:
    check = gpus(large, "cpu")["GPUs"]
    assert check.outcome is Outcome.PROBLEM
    assert check.change.startswith("another --partition with GPUs: gpu, scavenge; or cluster.slurm.gpu_request: none")
    assert gpus(large, "cpu", gpu_request="none")["GPUs"].outcome is Outcome.OK


def test_a_type_that_is_not_there_is_a_problem_and_a_mix_of_types_a_warning(large: SlurmSettings) -> None:
    assert "a100, h100" in gpus(large, gpu_type="v100")["GPU type"].found
    assert gpus(large, gpu_type="v100")["GPU type"].outcome is Outcome.PROBLEM
    assert gpus(large)["GPU type"].outcome is Outcome.WARNING
    assert "GPU type" not in gpus(large, gpu_type="a100")


def test_gpus_per_node_needs_cons_tres(large: SlurmSettings, small: SlurmSettings) -> None:
    assert gpus(large, gpu_request="gpus-per-node", gpu_type="a100")["GPU request"].outcome is Outcome.OK
    check = gpus(small, "batch", gpu_request="gpus-per-node")["GPU request"]
    assert check.outcome is Outcome.PROBLEM
    assert check.found == "--gpus-per-node=1 needs select/cons_tres, and this cluster has select/cons_res"
    assert check.change == "cluster.slurm.gpu_request: gres"


def test_gpus_that_nobody_asks_for_are_warned_about(large: SlurmSettings) -> None:
    assert gpus(large, gpu_request="none", gpu_type="a100")["GPU request"].outcome is Outcome.WARNING
    assert gpus(large, exclusive=True, gpu_type="a100")["GPU request"].found == "GPUs come with the whole node"


def test_memory_is_no_matter_where_the_cluster_does_not_count_it(small: SlurmSettings) -> None:
    assert memory(small, make_config("vllm"), "batch").outcome is Outcome.OK
    check = memory(small, make_config("vllm", memory="64GB"), "batch")
    assert check.outcome is Outcome.WARNING
    assert "--mem" in check.change


def test_a_default_that_is_small_for_the_model_is_warned_about_with_what_it_wants(large: SlurmSettings) -> None:
    check = memory(large, make_config("vllm"), "gpu", model_bytes=140 * 2**30)
    assert check.outcome is Outcome.WARNING
    assert check.found.startswith("a worker gets 7200 MiB (the default for 4 cores)")
    assert check.change.startswith("cluster.slurm.memory: 70GB")
    assert memory(large, make_config("vllm", cores=64), "gpu", model_bytes=2**30).outcome is Outcome.OK


def test_more_memory_than_a_partition_gives_will_not_work(large: SlurmSettings) -> None:
    check = memory(large, make_config(memory="64GB", cores=4), "cpu")
    assert (check.outcome, check.found) == (Outcome.PROBLEM, "64GB is above the partition's limit of 16000 MiB")


def test_limits_of_account_and_qos_are_held_against_the_workers(large: SlurmSettings) -> None:
    def found(pools: dict[str, Any] | None = None, **slurm: Any) -> list[tuple[Outcome, str]]:
        return [(check.outcome, check.found) for check in check_jobs(large, make_config(pools=pools, **slurm))][1:]

    assert found() == [(Outcome.OK, "2 jobs at once are within them")]
    ((outcome, words),) = found(walltime="2-00:00:00")
    assert (outcome, words) == (Outcome.PROBLEM, "2-00:00:00 is above the limit of QOS 'normal': 24 h")
    assert found({"workers": 80})[0][1].startswith("account 'proj-0042' allows 64 jobs at once (MaxSubmit)")
    assert found({"workers": 3}, qos="long")[0][0] is Outcome.WARNING
    assert found(qos="gold", account="proj-0043")[0] == (Outcome.PROBLEM, "'gold' is none of yours: normal")


def test_without_accounting_limits_are_not_checked_and_that_is_said(small: SlurmSettings) -> None:
    jobs, limits = check_jobs(small, make_config())
    assert "arrays" not in jobs.found
    assert "--array` of up to 1000 tasks" in jobs.found
    assert (limits.outcome, limits.found) == (Outcome.SKIPPED, "no accounting (sacctmgr does not answer)")


def test_more_jobs_than_the_cluster_holds_will_not_work(small: SlurmSettings) -> None:
    tiny = replace(small, config={**small.config, "MaxJobCount": "3"})
    assert next(iter(check_jobs(tiny, make_config(pools={"workers": 3})))).outcome is Outcome.PROBLEM


@pytest.mark.parametrize(
    ("partition", "outcome", "words"),
    [
        ("gpu", Outcome.OK, "are not preempted"),
        ("scavenge", Outcome.WARNING, "may be preempted (REQUEUE), with 10 s of warning"),
    ],
)
def test_preemption_with_less_warning_than_a_drain_takes_is_warned_about(
    large: SlurmSettings, partition: str, outcome: Outcome, words: str
) -> None:
    check = next(iter(check_ends(large, make_config(), large.nodes[partition])))
    assert (check.outcome, words in check.found) == (outcome, True), check.found


def test_a_partition_of_the_highest_tier_is_not_preempted(large: SlurmSettings) -> None:
    by_tier = replace(large, config={**large.config, "PreemptType": "preempt/partition_prio"})
    limits = {name: {**each, "PreemptMode": "REQUEUE"} for name, each in by_tier.partitions.items()}
    by_tier = replace(by_tier, partitions=limits)
    outcomes = [
        next(iter(check_ends(by_tier, make_config(), by_tier.nodes[name]))).outcome for name in ("gpu", "scavenge")
    ]
    assert outcomes == [Outcome.OK, Outcome.WARNING]


def test_a_drain_that_outlasts_kill_wait_is_warned_about(small: SlurmSettings) -> None:
    by_name = {check.name: check for check in check_ends(small, make_config(), small.nodes["batch"])}
    assert by_name["KillWait"].change == "cluster.drain_timeout_s: 10"
