"""A head takes over frontends, jobs that nobody noted, and ports."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpcserve.cluster import JobState, JobView
from hpcserve.cluster.command import AGENT_MODULE
from hpcserve.comm.protocol import FrontendInfo
from hpcserve.config.models import FrontendConfig
from hpcserve.errors import DeploymentError
from hpcserve.records import FrontendRecord, HeadRecord, JobRecord, Proc
from hpcserve.serve.frontend_keeper import FrontendKeeper
from hpcserve.serve.gathering import adopt_jobs
from hpcserve.serve.listening import listened_on, ports_of
from hpcserve.serve.strays import find_strays
from hpcserve.state import StateDir
from hpcserve.types import Role, WorkerId

SLEEP = "import time; time.sleep(60)"


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    state = StateDir(tmp_path / "t")
    state.create()
    return state


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process that leads a session of its own."""
    process = subprocess.Popen([sys.executable, "-c", SLEEP], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def info(pid: int, *, index: int = 0, host: str | None = None) -> FrontendInfo:
    return FrontendInfo(pid=pid, endpoint=None, index=index, host=socket.gethostname() if host is None else host)


async def test_a_frontend_that_lives_is_not_started_a_second_time_and_is_when_it_dies(
    state: StateDir, stranger: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = FrontendKeeper(state, FrontendConfig())
    keeper.adopt([FrontendRecord(proc=Proc.of(stranger.pid), index=0)])
    started = asyncio.Event()

    async def start(self: FrontendKeeper, index: int, port: int | None) -> int:
        started.set()
        await asyncio.Event().wait()
        return 0

    monkeypatch.setattr(FrontendKeeper, "_run_once", start)
    running = asyncio.create_task(keeper.run())
    assert keeper.takes(info(stranger.pid))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not started.is_set()
    stranger.kill()
    stranger.wait()
    await asyncio.wait_for(started.wait(), 10)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def test_dead_frontends_and_those_beyond_the_number_wanted_are_not_adopted(
    state: StateDir, stranger: subprocess.Popen[bytes]
) -> None:
    keeper = FrontendKeeper(state, FrontendConfig(processes=1))
    dead = Proc(pid=stranger.pid, host=socket.gethostname(), start_time=1)
    keeper.adopt([FrontendRecord(proc=dead, index=0), FrontendRecord(proc=Proc.of(stranger.pid), index=1)])
    assert not keeper.takes(info(stranger.pid))
    assert not keeper.takes(info(stranger.pid, index=1))


@pytest.mark.parametrize("is_taken", [False, True])
async def test_where_all_frontends_died_with_the_head_the_next_ones_have_their_port_unless_it_is_taken(
    state: StateDir, monkeypatch: pytest.MonkeyPatch, is_taken: bool
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        if not is_taken:
            other.close()
        keeper = FrontendKeeper(state, FrontendConfig(port=0))
        dead = Proc(pid=2**22 - 1, host=socket.gethostname(), start_time=1)
        keeper.adopt([FrontendRecord(proc=dead, index=0, port=port)])
        started: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()

        async def start(self: FrontendKeeper, index: int, port: int | None) -> int:
            started.set_result(port)
            await asyncio.Event().wait()
            return 0

        monkeypatch.setattr(FrontendKeeper, "_run_once", start)
        running = asyncio.create_task(keeper.run())
        assert (await asyncio.wait_for(started, 10) == port) is not is_taken
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def test_a_frontend_on_the_host_of_an_earlier_head_is_not_ours(
    state: StateDir, stranger: subprocess.Popen[bytes]
) -> None:
    keeper = FrontendKeeper(state, FrontendConfig())
    keeper.adopt([FrontendRecord(proc=Proc.of(stranger.pid), index=0)])
    assert keeper.takes(info(stranger.pid))
    assert not keeper.takes(info(stranger.pid, host="login2"))


async def test_a_process_that_nobody_noted_is_found_by_its_command_line(state: StateDir, tmp_path: Path) -> None:
    def agent(worker: str, directory: Path) -> subprocess.Popen[bytes]:
        words = [AGENT_MODULE, "--name", worker, "--state-dir", str(directory)]
        return subprocess.Popen([sys.executable, "-c", SLEEP, *words], start_new_session=True)

    agents = [agent("decode-2-ab12", state.path), agent("decode-3-cd34", state.path), agent("both-0-ab12", tmp_path)]
    try:
        noted = Proc.of(agents[1].pid)
        job = JobRecord(
            worker=WorkerId("decode-3-cd34"),
            pool="decode",
            role=Role.DECODE,
            job_id=f"{noted.pid}:{noted.start_time}",
            cluster="local",
        )
        state.write_jobs([job])
        async with asyncio.timeout(10):
            while not (found := await find_strays("local", state)):  # until its command line is there
                await asyncio.sleep(0)
        (stray,) = found
        assert (stray.worker, stray.pool, stray.role, stray.index) == ("decode-2-ab12", "decode", Role.DECODE, 2)
        assert stray.job_id.startswith(f"{agents[0].pid}:")
    finally:
        for process in agents:
            process.kill()
            process.wait()


def test_a_successor_listens_where_the_head_did_if_it_can() -> None:
    with socket.socket() as one, socket.socket() as other:
        for each in (one, other):
            each.bind(("127.0.0.1", 0))
        other.listen()
        free, taken = one.getsockname()[1], other.getsockname()[1]
        one.close()
        before = HeadRecord(
            proc=Proc.of(os.getpid()), scheduler=f"tls://127.0.0.1:{free}", address=f"tls://127.0.0.1:{taken}"
        )
        assert ports_of(before, "127.0.0.1") == (free, 0)
    assert ports_of(before, "127.0.0.2") == (0, 0), "another address"
    assert ports_of(None, "127.0.0.1") == (0, 0)


@pytest.mark.parametrize(
    ("frontend", "has_job", "host"),
    [
        (FrontendConfig(), False, None),
        (FrontendConfig(), True, "10.0.0.7"),
        (FrontendConfig(host="10.1.1.1"), True, None),
        (FrontendConfig(tcp=False), True, None),
    ],
)
def test_loopback_of_a_node_without_users_stands_for_its_own_address(
    frontend: FrontendConfig, has_job: bool, host: str | None
) -> None:
    assert listened_on(frontend, "10.0.0.7", has_job=has_job) == host


def test_one_up_at_a_time_looks_at_what_is_left_and_starts_a_head(state: StateDir) -> None:
    code = (
        "import sys; from pathlib import Path; from hpcserve.state import StateDir\n"
        "with StateDir(Path(sys.argv[1])).starting(): print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(state.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(DeploymentError, match="is being started by another hpcserve up"), state.starting():
            pass
    finally:
        other.communicate()
    with state.starting():
        pass


def test_a_head_that_has_died_is_remembered_until_one_ends_in_good_order(state: StateDir) -> None:
    record = HeadRecord(proc=Proc.of(os.getpid()), scheduler="tls://a:1", address="tls://a:2")
    assert (state.retire_head(), state.has_lost_head()) == (None, False)
    state.write_head(record)
    assert state.retire_head() == record
    assert (state.read_head(), state.has_lost_head()) == (None, True)
    assert state.retire_head() == record, "also for the next one, if the first did not come far"
    state.clear_head()
    assert (state.retire_head(), state.has_lost_head()) == (None, False)


class Slots:
    """A reconciler that notes what it is told, over a cluster in which every job runs."""

    def __init__(self) -> None:
        self.said: list[tuple[str, object]] = []

    def resize(self, sizes: dict[str, int]) -> None:
        self.said.append(("resize", dict(sizes)))

    def adopt(self, records: list[JobRecord]) -> None:
        self.said.append(("adopt", [each.job_id for each in records]))

    async def observe(self) -> dict[str, JobView]:
        states = {"1": JobState.RUNNING, "2": JobState.PENDING, "3": JobState.RUNNING, "4": JobState.GONE}
        return {job_id: JobView(job_id=job_id, state=state) for job_id, state in states.items()}


@pytest.mark.parametrize("is_planned", [False, True])
async def test_pools_that_a_planner_sized_keep_their_sizes_and_only_running_workers_are_waited_for(
    is_planned: bool,
) -> None:
    indices = {"1": 0, "2": 1, "3": 1, "4": 2}  # 3 is the successor of 2
    records = [
        JobRecord(
            worker=WorkerId(f"both-{index}-{job}"),
            pool="both",
            role=Role.BOTH,
            job_id=job,
            cluster="slurm",
            index=index,
        )
        for job, index in indices.items()
    ]
    slots: Any = Slots()
    returning = await adopt_jobs(slots, slots, records, is_planned=is_planned)
    assert returning == [WorkerId("both-0-1"), WorkerId("both-1-3")]
    resized = [("resize", {"both": 3})] if is_planned else []
    assert slots.said == [*resized, ("adopt", ["1", "2", "3", "4"])]


async def test_where_slurm_does_not_answer_all_jobs_on_record_are_taken_for_running() -> None:
    record = JobRecord(worker=WorkerId("both-0-1"), pool="both", role=Role.BOTH, job_id="1", cluster="slurm", index=0)
    slots: Any = Slots()
    assert await adopt_jobs(None, slots, [record], is_planned=False) == [WorkerId("both-0-1")]
    assert slots.said == [("adopt", ["1"])]
