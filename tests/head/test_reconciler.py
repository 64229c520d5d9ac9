from __future__ import annotations

import asyncio
import errno
import os
from collections import Counter

import pytest

from hpcserve.cluster.protocol import JobState
from hpcserve.errors import StartError
from hpcserve.types import WorkerState
from tests.head.conftest import World


async def test_every_wanted_worker_gets_one_job_and_the_jobs_are_on_record(world: World) -> None:
    await world.step()
    await world.step()
    assert Counter(spec.pool for spec in world.cluster.specs.values()) == {"prefill": 1, "decode": 2}
    assert {record.job_id for record in world.state.read_jobs()} == set(world.cluster.alive)


async def test_a_pending_job_shows_why(world: World) -> None:
    await world.step()
    await world.step()
    assert {info.detail for info in world.roster.workers()} == {"Resources"}
    assert set(world.states().values()) == {WorkerState.PENDING}


async def test_a_job_that_ends_while_serving_is_replaced_by_a_worker_of_another_name(world: World) -> None:
    first, *_ = await world.bring_up()
    lost = world.cluster.specs[first]
    world.cluster.become(first, JobState.GONE, reason="NODE_FAIL")
    world.roster.lose(f"dask-{first}")
    await world.step(60)
    replacements = [spec for spec in world.cluster.specs.values() if spec.pool == lost.pool]
    assert len(world.cluster.alive) == 3
    assert len({spec.worker for spec in replacements}) == len(replacements)
    assert world.states()[lost.worker] is WorkerState.FAILED
    assert {info.worker: info.detail for info in world.roster.workers()}[lost.worker] == "NODE_FAIL"


async def test_a_cancelled_worker_that_drained_is_replaced_at_once(world: World) -> None:
    first, *_ = await world.bring_up()
    worker = world.announce(first, WorkerState.DRAINING)
    world.announce(first, WorkerState.STOPPED)
    world.cluster.become(first, JobState.GONE, reason="CANCELLED")
    await world.step()
    assert len(world.cluster.alive) == 3
    assert world.states()[worker] is WorkerState.STOPPED


async def test_a_draining_worker_is_replaced_while_it_still_finishes_its_requests(world: World) -> None:
    first, *_ = await world.bring_up()
    worker = world.announce(first, WorkerState.DRAINING)
    world.cluster.become(first, JobState.GONE, reason="CANCELLED")  # Slurm says so before the agent is done
    await world.step()
    await world.step(5)
    assert len(world.cluster.specs) == 4
    assert world.states()[worker] is WorkerState.DRAINING, "frontends keep its streams"
    assert first in {record.job_id for record in world.state.read_jobs()}
    world.roster.lose(f"dask-{first}")
    await world.step()
    assert world.states()[worker] is WorkerState.STOPPED
    assert first not in {record.job_id for record in world.state.read_jobs()}


async def test_an_agent_that_is_silent_is_given_up_and_its_job_ended(world: World) -> None:
    first, *_ = await world.bring_up()
    world.roster.lose(f"dask-{first}")
    await world.step(5)
    assert first in world.cluster.alive, "it may come back"
    await world.step(6)
    await world.step(3)
    assert (first, True) in world.cluster.cancelled
    assert len(world.cluster.alive) == 3


async def test_an_agent_that_comes_back_in_time_keeps_its_job(world: World) -> None:
    first, *_ = await world.bring_up()
    world.roster.lose(f"dask-{first}")
    await world.step(5)
    world.announce(first, WorkerState.READY)
    await world.step(60)
    assert not world.cluster.cancelled
    assert len(world.cluster.specs) == 3


async def test_a_failed_start_is_tried_again_after_a_while_and_then_given_up_with_its_log(world: World) -> None:
    await world.step()
    job_id = next(job for job, spec in world.cluster.specs.items() if spec.pool == "prefill")
    world.announce(job_id, WorkerState.FAILED, "out of memory")
    world.cluster.become(job_id, JobState.GONE)
    await world.step()
    assert len(world.cluster.specs) == 3, "it backs off first"
    await world.step(3)
    again = next(job for job in reversed(world.cluster.specs) if world.cluster.specs[job].pool == "prefill")
    assert again != job_id
    world.announce(again, WorkerState.FAILED, "out of memory")
    with pytest.raises(StartError, match="out of memory") as caught:
        await world.step()
    assert f"log of {world.cluster.specs[again].worker}" in caught.value.message


async def test_a_pool_that_once_worked_is_never_given_up(world: World) -> None:
    await world.bring_up()
    for _ in range(6):
        for job_id in world.cluster.alive:
            world.cluster.become(job_id, JobState.GONE, reason="FAILED")
        await world.step()
        await world.step(120)
    assert len(world.cluster.alive) == 3


async def test_nor_is_it_under_a_new_head_that_finds_none_of_its_workers_ready(world: World) -> None:
    world.state.write_config(world.config)
    os.utime(world.state.path / "config.json", (0, world.now - 1))  # when the deployment began, in the test's time
    for job_id in await world.bring_up():
        world.end(job_id, reason="FAILED")
    await world.step()
    await world.step(120)
    world.renew_head()
    world.reconciler.adopt(world.state.read_jobs())
    for _ in range(6):
        for job_id in world.cluster.alive:
            world.cluster.become(job_id, JobState.GONE, reason="FAILED")
        await world.step()
        await world.step(120)
    assert len(world.cluster.alive) == 3


async def test_a_worker_that_crashes_right_after_ready_is_not_restarted_in_a_storm(world: World) -> None:
    await world.bring_up()
    for job_id in world.cluster.alive:
        world.cluster.become(job_id, JobState.GONE, reason="FAILED")
    await world.step()
    assert not world.cluster.alive
    await world.step(2.5)
    assert len(world.cluster.alive) == 3


async def test_what_does_not_become_ready_in_time_is_replaced(world: World) -> None:
    await world.step()
    job_id = world.cluster.alive[0]
    world.cluster.become(job_id, JobState.RUNNING, started_at=1.0)
    await world.step()
    await world.step()
    assert (job_id, True) in world.cluster.cancelled


async def test_a_refused_submission_counts_as_a_failure_and_leaves_no_job(world: World) -> None:
    world.cluster.refusal = "sbatch: invalid qos"
    await world.step()
    with pytest.raises(StartError, match="invalid qos"):
        await world.step(10)
    assert not world.state.read_jobs()


async def test_stopping_ends_every_job_and_forces_what_does_not_end(world: World) -> None:
    await world.bring_up()
    world.cluster.stubborn = True
    await world.reconciler.stop_all(force=False)
    assert not world.cluster.alive
    assert {force for _, force in world.cluster.cancelled} == {False, True}
    assert not world.state.read_jobs()
    assert all(state.is_final for state in world.states().values())


async def test_late_words_of_an_ended_worker_do_not_revive_it(world: World) -> None:
    first, *_ = await world.bring_up()
    world.cluster.become(first, JobState.GONE, reason="NODE_FAIL")
    world.roster.lose(f"dask-{first}")
    await world.step()
    worker = world.announce(first, WorkerState.READY)
    assert world.states()[worker] is WorkerState.FAILED


async def test_the_cluster_is_left_alone_while_every_worker_is_well_and_asked_at_once_when_one_is_not(
    world: World,
) -> None:
    first, *_ = await world.bring_up()
    running = asyncio.create_task(world.reconciler.run())
    try:
        await asyncio.sleep(0.1)  # ten short waits
        looks = world.cluster.num_looks
        await asyncio.sleep(0.1)
        assert world.cluster.num_looks == looks
        world.roster.lose(f"dask-{first}")
        async with asyncio.timeout(5):
            while world.cluster.num_looks == looks:
                await asyncio.sleep(0.01)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_smaller_pool_ends_its_youngest_worker_and_a_larger_one_launches_more(world: World) -> None:
    await world.bring_up()
    world.reconciler.resize({"decode": 1})
    await world.step()
    assert [world.cluster.specs[job].worker.startswith("decode-1-") for job, _ in world.cluster.cancelled] == [True]
    world.reconciler.resize({"decode": 3})
    await world.step()
    wanted = [spec.worker for job, spec in world.cluster.specs.items() if spec.pool == "decode"]
    assert len(wanted) == 4, "the one that ends, the one that stays, and two new ones"


async def test_a_new_head_takes_over_the_jobs_of_the_last_and_launches_nothing(world: World) -> None:
    await world.bring_up()
    records = world.state.read_jobs()
    second = world.another_reconciler()
    second.adopt(records)
    await second.step()
    assert len(world.cluster.specs) == 3
    assert {record.job_id for record in world.state.read_jobs()} == {record.job_id for record in records}


async def test_a_full_disk_is_a_line_in_the_log_and_the_jobs_are_on_record_once_there_is_room(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(records: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(type(world.state), "write_jobs", lambda _, records: refuse(records))
        running = asyncio.create_task(world.reconciler.run())
        async with asyncio.timeout(10):
            while not caplog.records:
                await asyncio.sleep(0.01)
    async with asyncio.timeout(10):
        while len(world.state.read_jobs()) != 3:
            await asyncio.sleep(0.01)
    running.cancel()
    assert {record.job_id for record in world.state.read_jobs()} == set(world.cluster.alive)
    assert "No space left" in caplog.text
    assert "Traceback" not in caplog.text
