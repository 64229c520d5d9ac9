"""Why workers ended, whose fault it was, and what follows for the next one."""

from __future__ import annotations

import pytest

from hpcserve.cluster.protocol import JobEnd, JobState
from hpcserve.errors import StartError
from hpcserve.head.ends import NodeBlame, verdict
from hpcserve.records import JobRecord
from hpcserve.types import EndCause, LoadReport, Role, WorkDone, WorkerId, WorkerInfo, WorkerState
from hpcserve.worker_log import WorkerLog
from tests.head.conftest import World

RECORD = JobRecord(worker=WorkerId("w"), pool="both", role=Role.BOTH, job_id="1", cluster="slurm", ends_at=1000.0)


def info(state: WorkerState) -> WorkerInfo:
    return WorkerInfo(worker=WorkerId("w"), pool="both", role=Role.BOTH, state=state)


@pytest.mark.parametrize(
    ("known", "said", "state", "now", "cause"),
    [
        (EndCause.TOLD, EndCause.UNKNOWN, WorkerState.STOPPED, 0.0, EndCause.TOLD),
        (EndCause.TOLD, EndCause.CANCELLED, WorkerState.STOPPED, 0.0, EndCause.TOLD),
        (EndCause.TOLD, EndCause.PREEMPTED, WorkerState.STOPPED, 0.0, EndCause.PREEMPTED),
        (EndCause.SILENT, EndCause.CANCELLED, WorkerState.FAILED, 0.0, EndCause.SILENT),
        (EndCause.SILENT, EndCause.NODE_FAILURE, WorkerState.FAILED, 0.0, EndCause.NODE_FAILURE),
        (None, EndCause.WALLTIME, WorkerState.READY, 0.0, EndCause.WALLTIME),
        (None, EndCause.UNKNOWN, WorkerState.FAILED, 0.0, EndCause.FAILED),
        (None, EndCause.UNKNOWN, WorkerState.STOPPED, 930.0, EndCause.WALLTIME),
        (None, EndCause.UNKNOWN, WorkerState.STOPPED, 100.0, EndCause.KILLED),
        (None, EndCause.UNKNOWN, WorkerState.READY, 100.0, EndCause.UNKNOWN),
    ],
)
def test_the_cause_is_what_only_the_cluster_can_know_then_what_the_head_did_then_what_is_likely(
    known: EndCause | None, said: EndCause, state: WorkerState, now: float, cause: EndCause
) -> None:
    assert verdict(known, JobEnd(cause=said), info(state), RECORD, now) is cause


def test_a_node_is_excluded_after_failures_in_a_row_and_only_for_its_own() -> None:
    blame = NodeBlame(exclude_after=3)
    assert not blame.note("n1", EndCause.KILLED, was_ready=True)
    assert not blame.note("n1", EndCause.PREEMPTED, was_ready=False)
    assert not blame.note("n1", EndCause.SILENT, was_ready=True)
    assert not blame.note("n2", EndCause.SILENT, was_ready=True)
    assert blame.note("n1", EndCause.FAILED, was_ready=False)
    assert list(blame.excluded) == ["n1"]
    assert "killed, silent, failed" in blame.excluded["n1"]


def test_a_worker_that_served_well_clears_its_node() -> None:
    blame = NodeBlame(exclude_after=2)
    blame.note("n1", EndCause.KILLED, was_ready=True)
    blame.note("n1", EndCause.WALLTIME, was_ready=True)
    assert not blame.note("n1", EndCause.KILLED, was_ready=True)


@pytest.mark.parametrize(
    ("reason", "cause", "state"),
    [
        ("TIMEOUT", EndCause.WALLTIME, WorkerState.STOPPED),
        ("PREEMPTED", EndCause.PREEMPTED, WorkerState.STOPPED),
        ("CANCELLED", EndCause.CANCELLED, WorkerState.STOPPED),
        ("NODE_FAIL", EndCause.NODE_FAILURE, WorkerState.FAILED),
        ("OUT_OF_MEMORY", EndCause.OUT_OF_MEMORY, WorkerState.FAILED),
        ("FAILED: exit code 3", EndCause.FAILED, WorkerState.FAILED),
        ("FAILED: killed by SIGKILL", EndCause.KILLED, WorkerState.FAILED),
    ],
)
async def test_an_end_is_told_apart_counted_and_written_down(
    world: World, reason: str, cause: EndCause, state: WorkerState
) -> None:
    first, *_ = await world.bring_up()
    worker = world.cluster.specs[first].worker
    load = LoadReport(prompt_tokens_total=70, generated_tokens_total=30, work=WorkDone(prefill_s=1.5, decode_s=2.0))
    world.report(first, load)
    world.end(first, reason)
    await world.step(40)
    said = world.roster.get(worker)
    assert said is not None
    assert (said.cause, said.state, said.detail) == (cause, state, reason)
    assert world.reconciler.ends == {cause: 1}
    (life,) = WorkerLog(world.state).read()
    assert (life.worker, life.cause, life.node) == (worker, cause, "gpu1")
    assert (life.prompt_tokens, life.generated_tokens, life.busy_s, life.num_gpus) == (70, 30, 3.5, 1)
    assert life.submitted_at <= (life.ready_at or 0) < life.ended_at


async def test_workers_that_end_by_the_dozen_are_written_down_with_what_they_did_and_replaced(world: World) -> None:
    world.reconciler.resize({"prefill": 15, "decode": 15})
    first = await world.bring_up()
    for job_id in first:
        world.report(job_id, LoadReport(generated_tokens_total=30))
        world.announce(job_id, WorkerState.STOPPED)
        world.end(job_id, "PREEMPTED")
    await world.step(1)
    assert [life.generated_tokens for life in WorkerLog(world.state).read()] == [30] * 30
    assert world.reconciler.ends == {EndCause.PREEMPTED: 30}
    await world.step(1)
    assert len(world.cluster.alive) == 30
    assert len(world.states()) < 30 + 30, "not all that ever were are shown"


async def test_the_oldest_worker_is_shown_and_written_down_though_many_have_ended_before_it(world: World) -> None:
    world.reconciler.resize({"prefill": 10, "decode": 10})
    oldest, *others = await world.bring_up()
    worker = world.report(oldest, LoadReport(generated_tokens_total=30))
    for job_id in (*others, oldest):
        world.end(job_id, "PREEMPTED")
        await world.step(1, is_quiet=True)
    said = world.roster.get(worker)
    assert said is not None
    assert said.cause is EndCause.PREEMPTED
    assert WorkerLog(world.state).read()[-1].generated_tokens == 30


async def test_a_job_that_slurm_requeued_is_a_preempted_worker_and_is_replaced(world: World) -> None:
    first, *_ = await world.bring_up()
    world.run(first, 1e6)
    await world.step(1)
    world.cluster.become(first, JobState.PENDING, reason="BeginTime")
    world.roster.lose(f"dask-{first}")
    await world.step(1)
    await world.step(1)
    await world.step(1)
    assert (first, True) in world.cluster.cancelled, "its script would bring a dead worker back"
    assert world.reconciler.ends == {EndCause.PREEMPTED: 1}
    assert len(world.cluster.alive) == 3


async def test_workers_preempted_before_they_were_ready_do_not_end_the_deployment(world: World) -> None:
    await world.step()
    for _ in range(4):
        for job_id in world.cluster.alive:
            world.cluster.become(job_id, JobState.GONE, reason="PREEMPTED")
        await world.step(1)
    assert len(world.cluster.alive) == 3


async def test_while_nobody_knows_why_a_job_ended_the_next_is_not_its_failure(world: World) -> None:
    await world.step()
    (first, *_) = world.cluster.alive
    world.cluster.become(first, JobState.GONE, reason="COMPLETING")
    world.cluster.unsaid = {first}
    await world.step(1)
    assert len(world.cluster.alive) == 2
    await world.step(2)
    assert len(world.cluster.alive) == 3
    assert not world.reconciler.ends
    world.cluster.unsaid = set()
    world.cluster.become(first, JobState.GONE, reason="CANCELLED")
    await world.step(1)
    assert world.reconciler.ends == {EndCause.CANCELLED: 1}


async def test_a_node_that_fails_again_and_again_is_left_out_named_and_forgiven_when_nothing_else_is_left(
    world: World,
) -> None:
    await world.bring_up()
    for _ in range(3):
        job_id = world.cluster.alive[0]
        world.run(job_id, 1e6)
        world.end(job_id, "FAILED: killed by SIGKILL")
        await world.step(1)
        await world.step(100)
    assert list(world.reconciler.excluded_nodes) == ["gpu1"]
    assert [spec.exclude for spec in world.cluster.specs.values()][-1] == ("gpu1",)
    world.cluster.refuses_exclusions = True
    world.end(world.cluster.alive[0], "FAILED: exit code 1")
    await world.step(1)
    await world.step(100)
    assert len(world.cluster.alive) == 3
    assert world.reconciler.excluded_nodes == {}


async def test_failures_back_off_up_to_the_longest_pause_that_is_configured(world: World) -> None:
    world.config = world.config.model_copy(
        update={"renewal": world.config.renewal.model_copy(update={"max_backoff_s": 5.0})}
    )
    world.reconciler = world.another_reconciler()
    await world.bring_up()
    for _ in range(4):
        world.cluster.become(world.cluster.alive[-1], JobState.GONE, reason="FAILED: exit code 1")
        await world.step(1)
        assert len(world.cluster.alive) == 2
        await world.step(6)
        assert len(world.cluster.alive) == 3


def kill_all(world: World) -> None:
    for job_id in world.cluster.alive:
        world.cluster.become(job_id, JobState.GONE, reason="FAILED: killed by SIGKILL")


async def test_a_pool_whose_first_workers_are_killed_cannot_be_started(world: World) -> None:
    await world.step()
    kill_all(world)
    await world.step(1)
    await world.step(10)
    kill_all(world)
    with pytest.raises(StartError, match="SIGKILL"):
        await world.step(1)
