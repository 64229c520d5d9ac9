from __future__ import annotations

import msgspec

from hpcserve.comm.protocol import Announcement
from hpcserve.types import (
    BlockHash,
    BlocksCleared,
    BlocksStored,
    KvEventBatch,
    LoadReport,
    RequestId,
    RouteRequest,
    WorkerId,
    WorkerState,
)
from tests.head.conftest import World


def batch(worker: WorkerId, seq: int, *hashes: int, snapshot: bool = False) -> Announcement:
    events = [BlocksStored([BlockHash(each) for each in hashes])]
    kv = KvEventBatch(
        worker=worker, seq=seq, events=[BlocksCleared(), *events] if snapshot else events, is_snapshot=snapshot
    )
    return Announcement(worker=worker, kv=kv)


async def test_a_gap_in_the_cache_events_asks_for_one_snapshot_which_closes_it(world: World) -> None:
    job_id, *_ = await world.bring_up()
    worker = world.cluster.specs[job_id].worker
    assert not world.roster.hear(batch(worker, 1, 11), "d")
    assert world.roster.hear(batch(worker, 3, 13), "d"), "batch 2 is missing"
    assert not world.roster.hear(batch(worker, 4, 14), "d"), "one request is under way"
    assert not world.roster.hear(batch(worker, 4, 11, 12, 13, 14, snapshot=True), "d")
    assert not world.roster.hear(batch(worker, 5, 15), "d")
    assert world.router.stats().indexed_blocks == 5
    assert world.roster.hear(batch(worker, 7, 17), "d"), "a later gap asks again"


async def test_a_worker_that_left_the_scheduler_is_not_assigned_to_but_not_over(world: World) -> None:
    await world.bring_up()
    jobs = {spec.pool: job for job, spec in world.cluster.specs.items()}
    world.roster.lose(f"dask-{jobs['prefill']}")
    route = RouteRequest(request_id=RequestId("r"), block_hashes=[], num_tokens=5000, max_tokens=5)
    assignment = world.router.assign(route, now=0.0)
    assert assignment.prefill is None
    assert not world.states()[world.cluster.specs[jobs["prefill"]].worker].is_final


async def test_announcements_of_a_worker_nobody_launched_are_harmless(world: World) -> None:
    assert world.roster.hear(batch(WorkerId("stranger"), 1, 1), "d") in (True, False)
    assert world.router.stats().indexed_blocks == 0


async def test_the_last_words_say_what_was_done_and_what_comes_late_does_too(world: World) -> None:
    job_id, *_ = await world.bring_up()
    worker = world.cluster.specs[job_id].worker
    info = world.roster.get(worker)
    assert info is not None
    over = msgspec.structs.replace(info, state=WorkerState.STOPPED)
    for generated in (70, 75):
        world.roster.hear(
            Announcement(worker=worker, info=over, load=LoadReport(generated_tokens_total=generated)), "d"
        )
        done = world.roster.last_load(worker)
        assert done is not None
        assert done.generated_tokens_total == generated
        assert worker not in world.roster.loads(), "it is nowhere among those that serve"


async def test_an_agents_end_counts_until_the_queue_was_read_and_the_queues_after_that(world: World) -> None:
    job_id, *_ = await world.bring_up()
    worker = world.cluster.specs[job_id].worker
    info = world.roster.get(worker)
    assert info is not None
    assert info.ends_at is None

    def end_after_saying(end: float) -> float | None:
        said = msgspec.structs.replace(info, ends_at=end)
        world.roster.hear(Announcement(worker=worker, info=said), "d")
        known = world.roster.get(worker)
        return None if known is None else known.ends_at

    assert end_after_saying(5000.0) == 5000.0
    world.roster.update_job(worker, ends_at=3000.0)
    assert end_after_saying(5000.0) == 3000.0, "a limit was changed, or a preemption came"
