"""The receipt of a deployment from what its state directory holds, compared with the site's accounting."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from hpcserve.cluster.protocol import JobEnd
from hpcserve.cluster.slurm_accounting import AccountedJob
from hpcserve.config.models import Config
from hpcserve.receipt import ReceiptFile
from hpcserve.records import JobRecord
from hpcserve.serve import receipt as receipts
from hpcserve.serve.last_lives import write_last_lives
from hpcserve.serve.receipt import make_receipt
from hpcserve.state import StateDir
from hpcserve.types import EndCause, LoadReport, Phase, Role, Status, Traffic, WorkDone, WorkerId
from hpcserve.worker_log import WorkerLife, WorkerLog

BEGAN = 1_000_000.0


def make_state(tmp_path: Path, **slurm: Any) -> StateDir:
    state = StateDir(tmp_path / "chat")
    state.create()
    config = {"name": "chat", "engine": {"kind": "mock"}, "cluster": {"kind": "slurm", "slurm": slurm}}
    state.write_config(Config.model_validate(config))
    os.utime(state.path / "config.json", (BEGAN, BEGAN))
    state.write_jobs([])
    return state


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StateDir:
    no_accounting(monkeypatch)
    return make_state(tmp_path, gpus=2)


def no_accounting(monkeypatch: pytest.MonkeyPatch) -> None:
    async def none(name: str, began_at: float) -> None:
        return None

    monkeypatch.setattr(receipts, "find_accounted", none)


def life(**given: Any) -> WorkerLife:
    return WorkerLife(
        **{
            "worker": WorkerId("both-0-a1"),
            "pool": "both",
            "cluster": "slurm",
            "job_id": "7",
            "submitted_at": BEGAN + 1,
            "started_at": BEGAN + 2,
            "ready_at": BEGAN + 20,
            "ended_at": BEGAN + 3602,
            "cause": EndCause.WALLTIME,
            "num_gpus": 2,
            "busy_s": 1800.0,
            "prompt_tokens": 1000,
            "generated_tokens": 100,
            **given,
        }
    )


def record(**given: Any) -> JobRecord:
    fields = {"worker": WorkerId("both-1-b2"), "pool": "both", "role": Role.BOTH, "job_id": "8", "cluster": "slurm"}
    return JobRecord(**fields | given)


async def test_lives_of_an_earlier_up_are_not_on_the_receipt(state: StateDir) -> None:
    WorkerLog(state).append(life(submitted_at=BEGAN - 7200, started_at=BEGAN - 7199, ended_at=BEGAN - 3600))
    WorkerLog(state).append(life())
    found = await make_receipt(state)
    assert (found.hours, found.num_workers, found.ends) == (2.0, 1, {EndCause.WALLTIME: 1})
    assert (found.is_final, found.until) == (True, BEGAN + 3602)
    assert ReceiptFile(state).read() == found


async def test_while_it_runs_living_workers_count_with_what_they_report(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = BEGAN + 7200
    monkeypatch.setattr(receipts.time, "time", lambda: now)
    WorkerLog(state).append(life())
    state.write_jobs([record(started_at=now - 1800, ready_at=now - 1700)])
    load = LoadReport(prompt_tokens_total=10, generated_tokens_total=5, work=WorkDone(prefill_s=100.0, decode_s=800.0))
    status = Status(
        name="chat", phase=Phase.SERVING, model="m", mode="aggregated", policy="kv", cluster="slurm",
        load={WorkerId("both-1-b2"): load}, traffic=Traffic(finished=12),
    )  # fmt: skip

    async def fetch(state: StateDir) -> Status:
        return status

    monkeypatch.setattr(receipts, "fetch_status", fetch)
    found = await make_receipt(state)
    assert (found.hours, found.num_workers, found.num_alive) == (3.0, 2, 1)
    assert (found.prompt_tokens, found.generated_tokens, found.num_requests) == (1010, 105, 12)
    assert found.busy_share == pytest.approx((1800 * 2 + 900 * 2) / 3600 / 3)
    assert not found.is_final
    assert ReceiptFile(state).read() is None


async def test_gpus_that_came_with_whole_nodes_are_asked_of_slurm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def find(job_ids: list[str]) -> dict[str, int]:
        return {"7": 4}

    no_accounting(monkeypatch)
    monkeypatch.setattr(receipts, "find_gpus", find)
    state = make_state(tmp_path, exclusive=True)
    WorkerLog(state).append(life(num_gpus=0))
    WorkerLog(state).append(life(num_gpus=0, job_id="9"))  # Slurm has forgotten it
    assert (await make_receipt(state)).hours == 8.0


def booked(**given: Any) -> AccountedJob:
    fields = {"job_id": "7", "worker": "both-0-a1", "elapsed_s": 3600.0, "num_gpus": 2, "state": "TIMEOUT"}
    return AccountedJob(**fields | given)


async def reconciled(state: StateDir, monkeypatch: pytest.MonkeyPatch, *jobs: AccountedJob) -> Any:
    async def find(name: str, began_at: float) -> list[AccountedJob]:
        assert (name, began_at) == ("chat", BEGAN)
        return list(jobs)

    monkeypatch.setattr(receipts, "find_accounted", find)
    WorkerLog(state).append(life())
    found = (await make_receipt(state)).accounting
    assert found is not None
    return found


async def test_an_accounting_that_agrees_has_no_differences(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    head = booked(job_id="6", worker="head", elapsed_s=9999.0, num_gpus=None)
    books = await reconciled(state, monkeypatch, booked(elapsed_s=3615.0), head)
    assert (books.num_jobs, books.differences) == (1, ())
    assert books.hours == pytest.approx(3615 * 2 / 3600)


async def test_an_accounting_that_differs_says_in_what(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    books = await reconciled(
        state,
        monkeypatch,
        booked(elapsed_s=1800.0, num_gpus=4),
        booked(job_id="99", worker="both-3-zz", elapsed_s=120.0),
    )
    assert books.differences == (
        "both-0-a1: 30.0 min there, 60.0 min here",
        "both-0-a1: 4 GPUs there, 2 here",
        "job 99 (both-3-zz) ran 2.0 min and is not in our log",
    )


async def test_an_accounting_without_the_job_or_without_gpus_says_so(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await reconciled(state, monkeypatch)).differences == ("both-0-a1: job 7 is not in the accounting (yet)",)
    WorkerLog(state).path.unlink()
    books = await reconciled(state, monkeypatch, booked(num_gpus=None))
    assert books.differences == ("the accounting counts no GPUs here: its hours are those of jobs",)
    assert books.hours == 1.0


async def test_workers_that_were_ended_without_a_head_are_written_down_once(state: StateDir) -> None:
    WorkerLog(state).append(life())
    records = [record(job_id="7"), record(started_at=BEGAN + 5), record(job_id="9", started_at=BEGAN + 5)]
    ends = {"9": JobEnd(cause=EndCause.NODE_FAILURE, detail="NODE_FAIL", node="gpu3", ended_at=BEGAN + 60)}
    write_last_lives(state, records, {"8"}, ends)
    lives = WorkerLog(state).read()[1:]
    assert [(each.job_id, each.cause, each.num_gpus) for each in lives] == [
        ("8", EndCause.TOLD, 2),
        ("9", EndCause.NODE_FAILURE, 2),
    ]
    assert (lives[1].ended_at, lives[1].node) == (BEGAN + 60, "gpu3")
