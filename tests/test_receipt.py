"""What a deployment has used, added up from the lives of its workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hpcserve.receipt import Receipt, ReceiptFile, Stay, add_up, stay_of, with_likely_gpus
from hpcserve.state import StateDir
from hpcserve.types import EndCause, WorkerId
from hpcserve.usage import Usage, UsageFile
from hpcserve.worker_log import WorkerLife

HOUR = 3600.0


def stay(**given: Any) -> Stay:
    return Stay(
        **{
            "worker": "both-0",
            "job_id": "1",
            "started_at": 0.0,
            "ready_at": 0.1 * HOUR,
            "ended_at": HOUR,
            "num_gpus": 4,
            "busy_s": 0.6 * HOUR,
            "prompt_tokens": 8000,
            "generated_tokens": 400,
            "cause": EndCause.TOLD,
            **given,
        }
    )


def receipt(*stays: Stay, whole_nodes: bool = False) -> Receipt:
    return add_up(
        "chat", stays, began_at=0.0, until=HOUR, whole_nodes=whole_nodes, num_requests=20, ends={}, is_final=True
    )


def test_hours_are_those_of_gpus_and_shares_are_of_them() -> None:
    found = receipt(stay(), stay(num_gpus=1, busy_s=0.0))
    assert (found.unit, found.hours, found.worker_hours) == ("GPU-hours", 5.0, 2.0)
    assert found.busy_share == pytest.approx(0.6 * 4 / 5)
    assert found.loading_share == pytest.approx(0.1)
    assert found.idle_share + found.busy_share + found.loading_share == pytest.approx(1.0)
    assert (found.per_hour(20), found.per_hour(found.prompt_tokens)) == (4.0, 3200.0)


def test_without_gpus_hours_are_those_of_workers_or_of_whole_nodes() -> None:
    assert receipt(stay(num_gpus=0)).unit == "worker-hours"
    assert receipt(stay(num_gpus=0), whole_nodes=True).unit == "node-hours"
    assert receipt(stay(num_gpus=0)).hours == 1.0


def test_a_worker_that_was_never_ready_only_loaded_and_one_that_never_started_costs_nothing() -> None:
    found = receipt(stay(ready_at=None, busy_s=0.0))
    assert (found.loading_share, found.idle_share) == (1.0, 0.0)
    never = WorkerLife(
        worker=WorkerId("w"),
        pool="both",
        cluster="slurm",
        job_id="1",
        submitted_at=0.0,
        ended_at=9.0,
        cause=EndCause.TOLD,
    )
    assert stay_of(never) is None
    assert receipt().per_hour(1) is None


def test_an_engine_is_not_busy_for_longer_than_it_was_ready() -> None:
    assert receipt(stay(busy_s=5 * HOUR)).busy_share == pytest.approx(0.9)


def test_gpus_that_nobody_wrote_down_are_as_many_as_the_others_had() -> None:
    assert [each.num_gpus for each in with_likely_gpus([stay(), stay(num_gpus=0), stay()], 1)] == [4, 4, 4]
    assert [each.num_gpus for each in with_likely_gpus([stay(num_gpus=0)], 2)] == [2]


def test_requests_are_those_since_the_deployment_was_started(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "chat")
    state.create()
    file = ReceiptFile(state)
    UsageFile(state).add({"alice": Usage(requests=10)})
    file.begin()
    assert file.num_requests() is None
    UsageFile(state).add({"alice": Usage(requests=5, rate_limited=2), "bob": Usage(requests=4)})
    assert file.num_requests() == 7


def test_a_new_life_has_no_receipt_of_an_earlier_one(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "chat")
    state.create()
    file = ReceiptFile(state)
    file.write(receipt(stay()))
    assert file.read() == receipt(stay())
    file.begin()
    assert file.read() is None
