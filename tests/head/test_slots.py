"""Which slots there are, which are given up first, and how an earlier head's jobs find their places."""

from __future__ import annotations

from hpcserve.head.slots import Held, Slot, adopted_slots, fresh_slots, least_useful
from hpcserve.records import JobRecord
from hpcserve.types import EndCause, Role, WorkerId, WorkerInfo, WorkerState
from tests.head.conftest import World


def record(index: int, submitted_at: float = 1.0, name: str = "a") -> JobRecord:
    worker = WorkerId(f"both-{index}-{name}")
    return JobRecord(
        worker=worker, pool="both", role=Role.BOTH, job_id=f"{index}{name}", cluster="slurm", index=index,
        submitted_at=submitted_at,
    )  # fmt: skip


def test_new_slots_take_the_lowest_numbers_that_nobody_has() -> None:
    assert [slot.index for slot in fresh_slots("both", [Slot("both", 1)], 3)] == [0, 2, 3]


def test_empty_slots_go_first_then_pending_then_loading_then_the_youngest() -> None:
    states = [WorkerState.READY, WorkerState.READY, WorkerState.LOADING, WorkerState.PENDING]
    slots = [Slot("both", index, Held(record(index, submitted_at=index))) for index in range(4)] + [Slot("both", 4)]
    infos = {
        record(index).worker: WorkerInfo(worker=record(index).worker, pool="both", role=Role.BOTH, state=state)
        for index, state in enumerate(states)
    }
    assert [slot.index for slot in least_useful(slots, 5, infos.get)] == [4, 3, 2, 1, 0]
    assert least_useful(slots, -1, infos.get) == []


def test_of_two_records_of_a_slot_the_younger_is_the_successor() -> None:
    (slot,), left = adopted_slots("both", 1, [record(0, 9.0, "b"), record(0, 1.0, "a"), record(0, 20.0, "c")], 5.0)
    assert slot.job is not None
    assert slot.successor is not None
    assert (slot.job.worker, slot.successor.worker) == ("both-0-a", "both-0-b")
    assert [each.worker for each in left] == ["both-0-c"]


def test_slots_keep_their_numbers_whatever_the_size_was_changed_to() -> None:
    slots, left = adopted_slots("both", 3, [record(1), record(5)], 5.0)
    assert [(slot.index, slot.job is not None) for slot in slots] == [(1, True), (5, True), (0, False)]
    assert left == []
    slots, left = adopted_slots("both", 1, [record(1), record(5)], 5.0)
    assert [slot.index for slot in slots] == [1]
    assert [each.index for each in left] == [5]


async def test_a_new_head_waits_for_agents_that_were_ready_but_not_for_ever(world: World) -> None:
    await world.step()
    for job_id in world.cluster.alive:
        world.run(job_id, 1e6)
    await world.step(5000)
    records = world.state.read_jobs()
    assert all(each.ready_at and each.started_at and each.ends_at and each.node == "gpu1" for each in records)
    for job_id in world.cluster.alive:
        world.roster.lose(f"dask-{job_id}")
    world.renew_head()
    world.reconciler.adopt(records)
    await world.step(1)
    assert len(world.cluster.specs) == 3
    assert not world.cluster.cancelled, "its job started long ago, but this head waits since a second"
    back, *gone = world.cluster.alive
    world.announce(back, WorkerState.READY)
    await world.step(61)
    await world.step(1)
    await world.step(1)
    assert {job for job, _ in world.cluster.cancelled} == set(gone)
    assert world.reconciler.ends == {EndCause.SILENT: 2}


async def test_a_new_head_goes_on_with_a_renewal_that_was_under_way(world: World) -> None:
    await world.step()
    for job_id in world.cluster.alive:
        world.run(job_id, 3600)
    await world.step(3550)
    assert len(world.cluster.alive) == 6
    first, *_ = world.cluster.alive
    records = world.state.read_jobs()
    world.renew_head()
    world.reconciler.adopt(records)
    for job_id in world.cluster.alive[:3]:
        world.announce(job_id, WorkerState.READY)
    await world.step(1)
    assert len(world.cluster.specs) == 6
    world.run(world.successor_of(first), 3600)
    await world.step(1)
    assert [worker for worker, _ in world.told] == [world.cluster.specs[first].worker]


async def test_a_job_that_has_no_place_under_the_new_head_is_told_to_end(world: World) -> None:
    await world.bring_up()
    records = world.state.read_jobs()
    world.renew_head()
    world.reconciler.resize({"decode": 1})
    world.reconciler.adopt(records)
    await world.step(1)
    assert [world.cluster.specs[job].pool for job, _ in world.cluster.cancelled] == ["decode"]
    await world.step(1)
    assert world.reconciler.ends == {EndCause.TOLD: 1}
