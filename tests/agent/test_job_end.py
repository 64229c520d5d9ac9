"""What an agent knows of its job's end. Slurm is a script here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcserve.agent.ends import job_end, job_ends

Squeue = Callable[[str], None]


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Squeue:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)

    def say(script: str) -> None:
        path = tmp_path / "squeue"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return say


async def test_slurm_is_asked_for_the_job_in_unix_seconds(squeue: Squeue) -> None:
    squeue('test "$2 $SLURM_TIME_FORMAT" = "--jobs=17 %s" && echo 1700000000')
    assert await job_end("17") == 1_700_000_000.0


@pytest.mark.parametrize("script", ["echo NONE", "exit 1", "echo"])
async def test_a_job_without_an_end_has_none(squeue: Squeue, script: str) -> None:
    squeue(script)
    assert await job_end("17") is None


async def test_if_slurm_does_not_answer_what_it_has_put_into_the_environment_counts(
    squeue: Squeue, monkeypatch: pytest.MonkeyPatch
) -> None:
    squeue("exit 1")
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1700000001")
    assert await job_end("17") == 1_700_000_001.0


async def test_a_limit_that_was_changed_is_noticed_and_one_that_was_not_is_not_told_again(
    squeue: Squeue, tmp_path: Path
) -> None:
    squeue(f"cat {tmp_path}/end")
    end = tmp_path / "end"
    end.write_text("100\n")
    told: list[float] = []
    async for each in job_ends("17", refresh_s=0.01):
        told.append(each)
        if len(told) == 2:
            break
        end.write_text("200\n")
    assert told == [100.0, 200.0]


async def test_outside_of_a_job_nothing_is_asked(squeue: Squeue) -> None:
    squeue("exit 1")
    async with asyncio.timeout(5):
        assert [each async for each in job_ends(None)] == []
