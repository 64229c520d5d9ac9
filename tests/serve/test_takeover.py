"""What `up` does where a deployment of that name has been before."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from hpcserve.config.models import Config
from hpcserve.errors import DeploymentError
from hpcserve.records import FrontendRecord, JobRecord, Proc
from hpcserve.serve.leftovers import Leftovers
from hpcserve.serve.takeover import Start, decide, differences, refuse_other_settings
from hpcserve.state import StateDir
from hpcserve.types import Role, WorkerId

JOB = JobRecord(worker=WorkerId("both-0-a1"), pool="both", role=Role.BOTH, job_id="17", cluster="slurm")
FRONTEND = FrontendRecord(proc=Proc.of(os.getpid()), index=0)


def config(**changes: Any) -> Config:
    return Config.model_validate({"name": "t", **changes})


def state_of(tmp_path: Path, kind: str) -> StateDir:
    state = StateDir(tmp_path / "t")
    state.create()
    state.write_config(config(cluster={"kind": kind}))
    return state


def test_where_nothing_is_left_a_deployment_begins_anew(tmp_path: Path) -> None:
    assert decide(Leftovers(head_is_alive=False, frontends=[], jobs=[]), StateDir(tmp_path / "t")) is Start.ANEW


@pytest.mark.parametrize(("frontends", "jobs"), [([FRONTEND], []), ([], [JOB]), ([FRONTEND], [JOB])])
def test_what_a_dead_head_has_left_is_adopted(
    tmp_path: Path, frontends: list[FrontendRecord], jobs: list[JobRecord]
) -> None:
    left = Leftovers(head_is_alive=False, frontends=frontends, jobs=jobs)
    assert decide(left, state_of(tmp_path, "slurm")) is Start.ADOPTING


def test_a_living_head_is_left_alone_whatever_else_there_is(tmp_path: Path) -> None:
    left = Leftovers(head_is_alive=True, frontends=[], jobs=[JOB])
    with pytest.raises(DeploymentError, match="'t' is already running"):
        decide(left, state_of(tmp_path, "slurm"))


def test_ranks_of_an_allocation_end_with_their_head_and_are_not_adopted(tmp_path: Path) -> None:
    left = Leftovers(head_is_alive=False, frontends=[FRONTEND], jobs=[])
    with pytest.raises(DeploymentError, match=r"run hpcserve down --name t first"):
        decide(left, state_of(tmp_path, "mpi"))


def test_what_nobody_sets_stays_as_it_runs() -> None:
    recorded = config(pools={"workers": 4}, engine={"kind": "mock"}, cluster={"kind": "slurm"})
    refuse_other_settings(recorded, config(), frozenset())
    refuse_other_settings(recorded, config(), None)


def test_the_same_settings_given_again_are_no_contradiction() -> None:
    recorded = config(pools={"workers": 4}, cluster={"kind": "slurm"})
    refuse_other_settings(recorded, config(pools={"workers": 4}), frozenset({"pools.workers"}))
    refuse_other_settings(recorded, config(cluster={"kind": "auto"}), frozenset({"cluster.kind"}))


def test_other_settings_are_refused_naming_each_and_both_ways_out() -> None:
    recorded = config(pools={"workers": 4}, frontend={"port": 9000})
    wanted = config(pools={"workers": 3}, frontend={"port": 8000})
    with pytest.raises(DeploymentError) as refused:
        refuse_other_settings(recorded, wanted, frozenset({"pools.workers", "frontend.port"}))
    for words in ("pools.workers is 4, not 3", "frontend.port is 9000, not 8000", "up --name t", "down --name t"):
        assert words in refused.value.message


def test_a_default_that_was_given_counts_and_one_that_was_not_does_not() -> None:
    recorded = config(frontend={"port": 9000})
    assert differences(recorded, config(), frozenset()) == []
    assert differences(recorded, config(), frozenset({"frontend.port"})) == ["frontend.port is 9000, not 8000"]


def test_keys_below_an_open_one_count_as_given() -> None:
    recorded = config(engine={"vllm": {"args": {"seed": 1}}})
    wanted = config(engine={"vllm": {"args": {"seed": 2}}})
    assert differences(recorded, wanted, frozenset({"engine.vllm.args.seed"})) == [
        'engine.vllm.args is {"seed": 1}, not {"seed": 2}'
    ]
