"""Frozen workers: requests move after seconds, the job is given up later, and the head's own stalls blame nobody."""

from __future__ import annotations

from hpcserve.comm.protocol import Announcement
from hpcserve.head.silence import Silence
from hpcserve.types import BlocksCleared, EndCause, KvEventBatch, WorkerId, WorkerState
from tests.head.conftest import World


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def quiet(world: World, job_id: str, seconds: int) -> None:
    """Let seconds pass in which everybody but one agent says something."""
    for _ in range(seconds):
        world.now += 1
        worker = world.cluster.specs[job_id].worker
        for info in world.roster.ready().values():
            if info.worker != worker:
                world.roster.hear(Announcement(worker=info.worker), "")
        await world.reconciler.step()


async def test_a_silent_worker_gets_no_more_requests_after_five_seconds_and_everybody_is_told(world: World) -> None:
    first, *_ = await world.bring_up()
    worker = world.cluster.specs[first].worker
    await quiet(world, first, 5)
    assert world.roster.is_ready(worker)
    changes = world.changes
    await quiet(world, first, 1)
    info = world.roster.get(worker)
    assert info is not None
    assert info.is_silent
    assert world.changes > changes
    assert worker not in world.router.loads()
    assert not world.cluster.cancelled, "it may come back"


async def test_one_that_is_heard_again_is_taken_back_and_asked_for_its_cache(world: World) -> None:
    first, *_ = await world.bring_up()
    worker = world.cluster.specs[first].worker
    await quiet(world, first, 8)
    assert world.roster.hear(Announcement(worker=worker), f"dask-{first}"), "a snapshot is needed"
    assert world.roster.is_ready(worker)
    assert worker in world.router.loads()
    snapshot = KvEventBatch(worker=worker, seq=1, events=[BlocksCleared()], is_snapshot=True)
    assert not world.roster.hear(Announcement(worker=worker, kv=snapshot), f"dask-{first}")
    await quiet(world, first, 4)
    assert world.roster.is_ready(worker)
    assert len(world.cluster.specs) == 3


async def test_one_that_stays_silent_is_given_up_and_its_job_ended_by_force(world: World) -> None:
    first, *_ = await world.bring_up()
    worker = world.cluster.specs[first].worker
    await quiet(world, first, 21)
    assert (first, True) in world.cluster.cancelled
    world.end(first, "CANCELLED")
    await quiet(world, first, 3)
    info = world.roster.get(worker)
    assert info is not None
    assert (info.state, info.cause) == (WorkerState.FAILED, EndCause.SILENT)
    assert len(world.cluster.alive) == 3
    late = Announcement(worker=worker, info=world.info_of(first, WorkerState.READY))
    assert world.roster.is_given_up(late), "if it comes back after all, it has to end"


async def test_loading_may_take_as_long_as_it_takes(world: World) -> None:
    await world.step()
    first, *_ = world.cluster.alive
    world.announce(first, WorkerState.LOADING)
    await quiet(world, first, 60)
    assert not world.cluster.cancelled


def test_a_head_that_stalled_blames_nobody() -> None:
    clock = Clock()
    silence = Silence(clock)
    worker = WorkerId("w")
    silence.hear(worker)
    for moment in (1.0, 2.0, 3.0):
        clock.now = moment
        assert silence.look([worker]) == []
    clock.now = 30.0
    assert silence.look([worker]) == [], "it was the head that did not listen"
    for moment in (31.0, 32.0, 33.0):
        clock.now = moment
        silence.look([worker])
    assert silence.look([worker]) == [worker]
