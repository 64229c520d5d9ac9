"""When a successor is due, and the handing over: a fake cluster, a fake clock."""

from __future__ import annotations

import pytest

from hpcserve.cluster.protocol import JobState
from hpcserve.config import Config
from hpcserve.head.renewal import Renewal
from hpcserve.records import JobRecord
from hpcserve.types import EndCause, Role, WorkerId, WorkerState
from hpcserve.worker_log import WorkerLog
from tests.head.conftest import World

HOUR_S = 3600.0


def renewal(**settings: object) -> Renewal:
    return Renewal(Config.model_validate({"renewal": settings}))


def record(walltime_s: float = HOUR_S, started_at: float = 0.0) -> JobRecord:
    return JobRecord(
        worker=WorkerId("both-0-a"), pool="both", role=Role.BOTH, job_id="1", cluster="slurm",
        started_at=started_at, ends_at=started_at + walltime_s,
    )  # fmt: skip


def test_the_lead_is_what_nearly_all_took_with_a_margin() -> None:
    learned = renewal()
    for seconds in [10.0] * 18 + [100.0] * 2:
        learned.observe("both", seconds)
    assert learned.lead_s("both", HOUR_S) == 60 + 1.5 * 100


def test_slurms_estimate_is_the_first_guess_and_counts_until_enough_was_seen() -> None:
    learned = renewal()
    assert learned.needs_guess("both")
    learned.guess("both", 400.0)
    assert learned.lead_s("both", HOUR_S) == 60 + 1.5 * 400
    for _ in range(3):
        learned.observe("both", 2.0)
    assert not learned.needs_guess("both")
    assert learned.lead_s("both", HOUR_S) == 60 + 1.5 * 2


def test_a_pool_that_loads_for_long_does_not_make_others_early() -> None:
    learned = renewal()
    learned.observe("prefill", 500.0)
    assert learned.lead_s("decode", HOUR_S) == 60


def test_a_lead_that_is_set_is_not_learned() -> None:
    learned = renewal(lead_s=200.0)
    learned.observe("both", 1000.0)
    assert learned.lead_s("both", HOUR_S) == 200


@pytest.mark.parametrize("lead_s", [None, 600.0])
def test_a_worker_with_a_short_walltime_lives_for_half_of_it_at_least(lead_s: float | None) -> None:
    learned = renewal(lead_s=lead_s)
    learned.observe("both", 300.0)
    assert not learned.is_due(record(120.0), 59.0)
    assert learned.is_due(record(120.0), 60.0)


def test_nobody_is_due_without_an_end_or_with_renewal_off() -> None:
    without_end = JobRecord(worker=WorkerId("w"), pool="both", role=Role.BOTH, job_id="1", cluster="slurm")
    assert not renewal().is_due(without_end, 1e12)
    assert not renewal(enabled=False).is_due(record(), 1e12)


def test_a_worker_leaves_soon_after_its_successor_is_ready_but_always_before_its_end() -> None:
    rules = renewal()
    assert rules.leave_at(record(), 1000.0, 20.0) == 1020
    assert rules.leave_at(record(), 3575.0, 20.0) == 3580
    assert rules.leave_at(record(), 3590.0, 20.0) == 3590


async def bring_up_with_ends(world: World, walltime_s: float = HOUR_S) -> list[str]:
    await world.step()
    for job_id in world.cluster.alive:
        world.run(job_id, walltime_s)
    await world.step(1)
    return world.cluster.alive


def wait_behind_others(world: World) -> None:
    for job_id, view in world.cluster.views.items():
        if view.state is JobState.PENDING:
            world.cluster.become(job_id, JobState.PENDING, reason="Priority")


async def test_a_successor_takes_over_when_it_is_ready_and_the_old_worker_is_told_by_when_to_leave(
    world: World,
) -> None:
    first, *_ = await bring_up_with_ends(world)
    old = world.cluster.specs[first].worker
    await world.step(HOUR_S - 60)
    assert len(world.cluster.alive) == 6, "one successor each"
    await world.step(1)
    assert len(world.cluster.alive) == 6, "and no more"
    assert not world.told
    successor = world.successor_of(first)
    world.run(successor, HOUR_S)
    await world.step(1)
    ((told, command),) = world.told
    assert (told, command.op, command.leave_at) == (old, "stop", world.now + 20)
    assert not world.cluster.cancelled, "it drains"
    world.end(first)
    await world.step(5)
    assert world.reconciler.ends == {EndCause.TOLD: 1}
    assert [(life.worker, life.cause, life.detail) for life in WorkerLog(world.state).read()] == [
        (old, EndCause.TOLD, "renewed")
    ]
    assert len(world.cluster.specs) == 6, "the successor fills the slot"


async def test_an_old_worker_that_does_not_hear_is_sent_a_signal(world: World) -> None:
    first, *_ = await bring_up_with_ends(world)
    await world.step(HOUR_S - 60)
    world.run(world.successor_of(first), HOUR_S)
    await world.step(1)
    await world.step(11)
    assert world.cluster.cancelled == [(first, False)]


async def test_without_a_successor_in_time_the_old_worker_stays_until_shortly_before_its_end(world: World) -> None:
    first, *_ = await bring_up_with_ends(world)
    await world.step(HOUR_S - 60)
    wait_behind_others(world)
    await world.step(20)
    assert not world.told
    await world.step(10)
    assert len(world.told) == 3
    told = dict(world.told)[world.cluster.specs[first].worker]
    assert told.leave_at == world.cluster.views[first].ends_at - 20
    await world.step(1)
    assert len(world.told) == 3, "they are told once"
    world.announce(first, WorkerState.DRAINING)
    world.end(first)
    await world.step(5)
    assert world.reconciler.ends == {EndCause.WALLTIME: 1}
    assert len(world.cluster.specs) == 6, "its pending successor is the slot's job now"


async def test_a_successor_that_fails_is_tried_again_after_a_pause(world: World) -> None:
    first, *_ = await bring_up_with_ends(world)
    await world.step(HOUR_S - 60)
    successor = world.successor_of(first)
    world.cluster.become(successor, JobState.GONE, reason="FAILED: exit code 1")
    await world.step(1)
    assert len(world.cluster.specs) == 6
    await world.step(3)
    assert len(world.cluster.specs) == 7
    assert world.states()[world.cluster.specs[first].worker] is WorkerState.READY


async def test_a_preemption_with_grace_is_seen_by_its_earlier_end_and_answered_like_one(world: World) -> None:
    first, *_ = await bring_up_with_ends(world)
    world.cluster.become(first, JobState.RUNNING, ends_at=world.now + 20)
    await world.step(1)
    ((told, command),) = world.told
    assert told == world.cluster.specs[first].worker
    assert command.leave_at == world.now
    world.announce(first, WorkerState.DRAINING)
    world.end(first, reason="PREEMPTED")
    await world.step(1)
    assert world.reconciler.ends == {EndCause.PREEMPTED: 1}
    assert len(world.cluster.alive) == 3


async def test_where_successors_have_no_room_one_worker_leaves_early_and_each_that_is_ready_relieves_the_next(
    world: World,
) -> None:
    _, one, two = await bring_up_with_ends(world)
    await world.step(HOUR_S - 60)
    await world.step(10)
    assert not world.told, "they may start yet"
    await world.step(6)
    await world.step(1)
    ((told, _),) = world.told
    assert told == world.cluster.specs[one].worker, "no pool loses its only worker"
    world.announce(one, WorkerState.DRAINING)
    world.end(one)
    world.run(world.successor_of(two), HOUR_S)  # Slurm takes that one
    await world.step(1)
    assert [worker for worker, _ in world.told] == [told, world.cluster.specs[two].worker]
    await world.step(1)
    assert len(world.told) == 2
    assert len(world.cluster.specs) == 6


async def test_nobody_leaves_early_for_a_successor_that_waits_behind_others(world: World) -> None:
    await bring_up_with_ends(world)
    await world.step(HOUR_S - 60)
    wait_behind_others(world)
    await world.step(1)
    await world.step(16)
    assert not world.told


async def test_the_cluster_is_asked_for_an_estimate_only_while_too_little_was_seen(world: World) -> None:
    world.cluster.starts_at = world.now + 500
    await bring_up_with_ends(world)
    await world.step(1)
    await world.step(1)
    assert world.cluster.num_estimates == 2, "once a pool"


async def test_jobs_without_an_end_are_not_renewed_and_nothing_is_asked(world: World) -> None:
    await world.bring_up()
    await world.step(1e6)
    assert len(world.cluster.specs) == 3
    assert world.cluster.num_estimates == 0


async def test_an_allocation_that_ends_as_a_whole_is_not_renewed(world: World) -> None:
    world.cluster.kind = "mpi"
    world.reconciler = world.another_reconciler()
    await bring_up_with_ends(world)
    await world.step(HOUR_S - 10)
    assert len(world.cluster.specs) == 3
    assert not world.told
