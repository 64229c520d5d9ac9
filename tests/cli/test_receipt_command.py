"""`hpcserve receipt`, and the receipt at the end of `hpcserve down`."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from hpcserve.config import Config
from hpcserve.receipt import Accounting, Receipt, ReceiptFile
from hpcserve.state import StateDir
from hpcserve.types import EndCause, WorkerId
from hpcserve.worker_log import WorkerLife, WorkerLog


@pytest.fixture
def state(home: Path) -> StateDir:
    state = StateDir.of("default")
    state.create()
    state.write_config(Config.model_validate({"engine": {"kind": "mock"}, "cluster": {"kind": "local"}}))
    state.write_jobs([])
    return state


KEPT = Receipt(
    name="default", began_at=0.0, until=7200.0, is_final=True, unit="GPU-hours", hours=8.0, worker_hours=2.0,
    loading_share=0.05, busy_share=0.65, idle_share=0.3, num_workers=2, num_alive=0, num_requests=4000,
    prompt_tokens=8_000_000, generated_tokens=400_000, ends={EndCause.TOLD: 1, EndCause.NODE_FAILURE: 1},
    accounting=Accounting(hours=8.4, num_jobs=2, differences=("both-0: 66.0 min there, 60.0 min here",)),
)  # fmt: skip


def test_a_receipt_that_was_kept_is_printed(run, state: StateDir) -> None:
    ReceiptFile(state).write(KEPT)
    lines = run("receipt").stdout.splitlines()
    assert lines[0].startswith("used      8 GPU-hours, 2 workers, ")
    assert lines[1:] == [
        "of that   65% computing, 30% idle, 5% loading",
        "served    4,000 requests, 8,000,000 prompt tokens, 400,000 generated",
        "          500 requests, 1,000,000 prompt tokens, 50,000 generated a GPU-hour",
        "ends      1 told, 1 node failure",
        "sacct     8.4 GPU-hours in 2 jobs",
        "          both-0: 66.0 min there, 60.0 min here",
    ]


def test_as_json_it_has_every_field_and_the_amounts_for_an_hour(run, state: StateDir) -> None:
    ReceiptFile(state).write(KEPT)
    found = json.loads(run("receipt", "--json").stdout)
    assert (found["requests_per_hour"], found["generated_tokens_per_hour"]) == (500.0, 50_000.0)
    assert found["ends"] == {"told": 1, "node_failure": 1}
    assert found["accounting"]["differences"] == ["both-0: 66.0 min there, 60.0 min here"]


def test_without_one_that_was_kept_it_is_made_from_the_workers_lives(run, state: StateDir) -> None:
    now = time.time()
    WorkerLog(state).append(
        WorkerLife(
            worker=WorkerId("both-0"),
            pool="both",
            cluster="local",
            job_id="1",
            submitted_at=now,
            started_at=now,
            ready_at=now + 60,
            ended_at=now + 3600,
            cause=EndCause.TOLD,
            busy_s=1800.0,
        )
    )
    lines = run("receipt").stdout.splitlines()
    assert lines[0].startswith("used      1 worker-hours, 1 worker, ")
    assert lines[1] == "of that   50% computing, 48% idle, 2% loading"
    assert ReceiptFile(state).read() is not None


def test_of_a_deployment_that_never_had_a_worker_it_is_empty(run, state: StateDir) -> None:
    result = run("receipt")
    assert result.exit_code == 0
    assert result.stdout.startswith("used      0 worker-hours, 0 workers, ")
