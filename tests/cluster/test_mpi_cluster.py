"""Ranks of an allocation as workers: what only this cluster has."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hpcserve.cluster import JobState, make_cluster
from hpcserve.cluster.launcher import Launch
from hpcserve.cluster.mpi import MpiCluster
from hpcserve.cluster.rank import Rank
from hpcserve.cluster.rank_protocol import Rendezvous, read_rendezvous, write_rendezvous
from hpcserve.errors import ClusterError
from tests.cluster.conftest import STAND_IN, Logs, make_spec, make_state, mpi_config, until

pytestmark = pytest.mark.real

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _state(tmp_path: Path) -> None:
    make_state(tmp_path)


@asynccontextmanager
async def allocation(path: Path, num_ranks: int, *, starting: int | None = None) -> AsyncIterator[MpiCluster]:
    """A cluster with its ranks as tasks; only the first `starting` of them ever report."""
    cluster = MpiCluster(
        mpi_config(), path, agent_module=STAND_IN, launch=Launch(0, num_ranks), join_timeout_s=1.5 if starting else 30
    )
    numbers = range(1, (starting or num_ranks - 1) + 1)
    ranks = [asyncio.create_task(Rank(path, Launch(rank, num_ranks)).run()) for rank in numbers]
    try:
        yield cluster
    finally:
        await cluster.close()
        async with asyncio.timeout(10):
            await asyncio.gather(*ranks)


async def gone(cluster: MpiCluster, job_id: str) -> str:
    await cluster.wait_gone([job_id], timeout_s=10)
    view = (await cluster.observe())[job_id]
    assert view.state is JobState.GONE
    return view.reason


async def test_a_rank_whose_agent_was_killed_takes_the_replacement(tmp_path: Path, logs: Logs) -> None:
    async with allocation(tmp_path, 2) as cluster:
        spec, replacement = make_spec(worker="decode-0-aaaa"), make_spec(worker="decode-0-bbbb")
        job_id = await cluster.launch(spec)
        os.kill((await logs.until_started(spec))["pid"], signal.SIGKILL)
        assert await gone(cluster, job_id) == "FAILED: killed by SIGKILL"
        second = await cluster.launch(replacement)
        await logs.until_started(replacement)
        assert (await cluster.observe())[second].state is JobState.RUNNING


async def test_what_an_agent_left_behind_is_ended_with_it(tmp_path: Path, logs: Logs) -> None:
    async with allocation(tmp_path, 2) as cluster:
        spec = make_spec("--child")
        job_id = await cluster.launch(spec)
        log = await logs.until_says(spec, "child ")
        child = int(log.partition("child ")[2].split()[0])
        os.kill((await logs.until_started(spec))["pid"], signal.SIGKILL)
        await gone(cluster, job_id)
        await until(lambda: not is_running(child))


async def test_more_workers_than_ranks_wait_for_one_to_be_free(tmp_path: Path, logs: Logs) -> None:
    async with allocation(tmp_path, 2) as cluster:
        first, second = make_spec("--drain-at-once", worker="decode-0"), make_spec(worker="decode-1")
        job_id = await cluster.launch(first)
        await logs.until_started(first)
        waiting = await cluster.launch(second)
        view = (await cluster.observe())[waiting]
        assert (view.state, view.reason) == (JobState.PENDING, "waits for a rank")
        await cluster.cancel([job_id])
        await logs.until_started(second)


async def test_a_rank_that_does_not_report_is_named_and_the_others_work(tmp_path: Path, logs: Logs) -> None:
    async with allocation(tmp_path, 4, starting=2) as cluster:
        specs = [make_spec(worker=f"decode-{index}") for index in range(3)]
        jobs = [await cluster.launch(spec) for spec in specs]
        assert await gone(cluster, jobs[2]) == "FAILED: rank 3 of 4 did not report within 1.5 s"
        for spec in specs[:2]:
            await logs.until_started(spec)


async def test_nothing_starts_before_all_ranks_have_reported(tmp_path: Path) -> None:
    cluster = MpiCluster(mpi_config(), tmp_path, agent_module=STAND_IN, launch=Launch(0, 3))
    rank = asyncio.create_task(Rank(tmp_path, Launch(1, 3)).run())
    job_id = await cluster.launch(make_spec())

    async def reason() -> str:
        return (await cluster.observe())[job_id].reason

    async with asyncio.timeout(10):
        while await reason() != "waits for rank 2 to report":
            await asyncio.sleep(0.02)
    await cluster.cancel([job_id])
    assert await gone(cluster, job_id) == "CANCELLED"
    await cluster.close()
    assert await rank == 0


async def test_the_gpus_of_a_node_are_shared_among_its_ranks(
    tmp_path: Path, logs: Logs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    async with allocation(tmp_path, 3) as cluster:
        specs = [make_spec(worker=f"decode-{index}") for index in range(2)]
        for spec in specs:
            await cluster.launch(spec)
        around = [await logs.until_started(spec) for spec in specs]
    assert sorted(each["CUDA_VISIBLE_DEVICES"] for each in around) == ["0,1", "2,3"]


async def test_too_few_gpus_for_the_ranks_of_a_node_are_refused_by_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    async with allocation(tmp_path, 3) as cluster:
        reason = await gone(cluster, await cluster.launch(make_spec()))
        assert "1 GPUs for 2 workers" in reason
        assert "rank 1 on" in reason


async def test_the_environment_of_agents_has_nothing_of_the_launcher(
    tmp_path: Path, logs: Logs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    monkeypatch.setenv("PMIX_NAMESPACE", "7")
    async with allocation(tmp_path, 2) as cluster:
        spec = make_spec()
        await cluster.launch(spec)
        pid = (await logs.until_started(spec))["pid"]
        environ = Path(f"/proc/{pid}/environ").read_bytes()
    assert b"OMPI_COMM" not in environ
    assert b"PMIX_" not in environ
    assert b"OMP_NUM_THREADS=" in environ


async def test_a_rank_that_lost_the_head_for_a_moment_keeps_its_agent(tmp_path: Path, logs: Logs) -> None:
    async with allocation(tmp_path, 2) as cluster:
        spec = make_spec()
        job_id = await cluster.launch(spec)
        pid = (await logs.until_started(spec))["pid"]
        peer = cluster._ranks._peers[1]
        peer.channel.close()
        await until(lambda: cluster._ranks._peers.get(1) not in (None, peer))
        assert (await cluster.observe())[job_id].state is JobState.RUNNING
        assert is_running(pid)
        await cluster.cancel([job_id], force=True)
        await cluster.wait_gone([job_id], timeout_s=5)


async def test_the_end_of_an_agent_is_told_when_the_head_is_heard_again(tmp_path: Path, logs: Logs) -> None:
    async with allocation(tmp_path, 2) as cluster:
        spec = make_spec()
        job_id = await cluster.launch(spec)
        pid = (await logs.until_started(spec))["pid"]
        cluster._ranks._peers[1].channel.close()
        os.kill(pid, signal.SIGKILL)
        assert await gone(cluster, job_id) == "FAILED: killed by SIGKILL"


async def test_a_rank_leaves_and_ends_its_agent_when_the_head_stays_away(tmp_path: Path, logs: Logs) -> None:
    cluster = MpiCluster(mpi_config(), tmp_path, agent_module=STAND_IN, launch=Launch(0, 2))
    rank = asyncio.create_task(Rank(tmp_path, Launch(1, 2), lost_s=0.2).run())
    spec = make_spec("--drain-at-once")
    await cluster.launch(spec)
    pid = (await logs.until_started(spec))["pid"]
    assert cluster._listener is not None
    await cluster._listener.close()
    assert await rank == 1
    assert not is_running(pid)
    await cluster.close()


async def test_a_rank_does_not_wait_for_ever_for_a_head(tmp_path: Path) -> None:
    async with asyncio.timeout(5):
        assert await Rank(tmp_path, Launch(1, 2), first_wait_s=0.1).run() == 1


async def test_ranks_leave_when_rank_0_says_that_there_will_be_no_head(tmp_path: Path) -> None:
    write_rendezvous(make_state(tmp_path), Rendezvous(label="0", address=None))
    async with asyncio.timeout(5):
        assert await Rank(tmp_path, Launch(1, 2)).run() == 0


async def test_what_an_earlier_start_left_is_passed_over(tmp_path: Path) -> None:
    write_rendezvous(make_state(tmp_path), Rendezvous(label="another", address=None))
    async with asyncio.timeout(5):
        assert await Rank(tmp_path, Launch(1, 2), first_wait_s=0.1).run() == 1


async def test_a_rank_process_ends_its_agent_on_sigterm_and_leaves(tmp_path: Path, logs: Logs) -> None:
    cluster = MpiCluster(mpi_config(), tmp_path, agent_module=STAND_IN, launch=Launch(0, 2))
    rank = subprocess.Popen(
        [sys.executable, "-m", "hpcserve.cluster.rank", "--state-dir", str(tmp_path)],
        env=os.environ | {"PMI_RANK": "1", "PMI_SIZE": "2"},
        cwd=ROOT,
    )
    try:
        spec = make_spec("--drain-at-once")
        job_id = await cluster.launch(spec)
        await logs.until_started(spec)
        os.kill((await logs.until_started(spec))["pid"], signal.SIGUSR1)
        rank.send_signal(signal.SIGUSR1)  # srun sends it to all processes; it is for rank 0 only
        rank.terminate()
        assert await gone(cluster, job_id) == "COMPLETED"
        assert await asyncio.to_thread(rank.wait, 10) == 0
    finally:
        rank.kill()
        rank.wait()
        await cluster.close()


async def test_an_agent_does_not_outlive_a_rank_that_was_killed(tmp_path: Path, logs: Logs) -> None:
    cluster = MpiCluster(mpi_config(), tmp_path, agent_module=STAND_IN, launch=Launch(0, 2))
    rank = subprocess.Popen(
        [sys.executable, "-m", "hpcserve.cluster.rank", "--state-dir", str(tmp_path)],
        env=os.environ | {"PMI_RANK": "1", "PMI_SIZE": "2"},
        cwd=ROOT,
    )
    try:
        spec = make_spec("--drain-at-once")
        await cluster.launch(spec)
        pid = (await logs.until_started(spec))["pid"]
        rank.kill()
        await until(lambda: not is_running(pid))
    finally:
        rank.kill()
        rank.wait()
        await cluster.close()


async def test_outside_of_an_allocation_it_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    cluster = make_cluster(mpi_config(), tmp_path)
    assert isinstance(cluster, MpiCluster)
    with pytest.raises(ClusterError, match="mpirun or srun"):
        await cluster.check(1)
    with pytest.raises(ClusterError, match="mpirun or srun"):
        await cluster.launch(make_spec())


async def test_more_workers_than_ranks_are_refused_with_the_number_that_is_needed(tmp_path: Path) -> None:
    cluster = MpiCluster(mpi_config(), tmp_path, launch=Launch(0, 4, "srun"))
    await cluster.check(3)
    with pytest.raises(ClusterError, match=r"4 workers need 5 ranks.*srun started 4"):
        await cluster.check(4)


async def test_a_job_of_an_earlier_head_is_gone_as_far_as_anybody_else_knows(tmp_path: Path) -> None:
    cluster = MpiCluster(mpi_config(), tmp_path, launch=Launch(0, 4))
    cluster.adopt("decode-0-aaaa")
    assert (await cluster.observe())["decode-0-aaaa"].state is JobState.GONE


def test_the_command_of_a_rank_is_shown(tmp_path: Path) -> None:
    words = MpiCluster(mpi_config(), tmp_path).render(make_spec()).split()
    assert words[:3] == [sys.executable, "-m", "hpcserve.agent"]
    assert "--role" in words


def test_a_half_written_rendezvous_is_none(tmp_path: Path) -> None:
    (tmp_path / "ranks.json").write_text(json.dumps({"label": "0"})[:-1])
    assert read_rendezvous(tmp_path) is None


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
