"""The planner's loop in a head: what is decided is done, written down and told; as a preview it is only told."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from hpcserve.comm.protocol import Announcement, Command
from hpcserve.config import Config
from hpcserve.head.planning import Planning
from hpcserve.state import StateDir
from hpcserve.types import LoadReport, RequestId, Role, RouteRequest, Traffic, WorkerId, WorkerState
from tests.head.conftest import World

SPLIT = {"mode": "disaggregated", "prefill": 1, "decode": 2}


@dataclass
class Stage:
    """A world of a reconciler, and the planner in it."""

    world: World
    planning: Planning
    told: list[tuple[WorkerId, Command]] = field(default_factory=list)
    num_requests: int = 0

    def ask(self, num: int, num_tokens: int = 8000) -> None:
        for _ in range(num):
            self.num_requests += 1
            name = RequestId(f"r{self.num_requests}")
            request = RouteRequest(request_id=name, block_hashes=[], num_tokens=num_tokens, max_tokens=9)
            self.world.router.submit(request, self.world.now)

    def end_all(self) -> None:
        for number in range(self.num_requests):
            self.world.router.release(RequestId(f"r{number + 1}"))

    def step(self, seconds: float = 5.0) -> None:
        self.world.now += seconds
        self.world.sound()
        self.planning.step(self.world.now)

    def lines(self) -> list[dict[str, object]]:
        path = self.world.state.path / "plan.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def stage(tmp_path: Path, pools: dict[str, object], **planner: object) -> Stage:
    config = Config.model_validate(
        {"engine": {"kind": "mock"}, "pools": pools, "planner": {"enabled": True, **planner}, "router": {"pull": False}}
    )
    state = StateDir(tmp_path / "d")
    state.create()
    world = World(config, state)
    made: list[tuple[WorkerId, Command]] = []
    planning = Planning(
        config,
        state,
        world.router,
        world.roster,
        world.reconciler,
        traffic=Traffic,
        tell=lambda worker, command: made.append((worker, command)),
        on_change=lambda: None,
    )
    return Stage(world, planning, made)


async def test_a_flip_is_told_to_the_agent_and_the_router_goes_by_what_it_announces(tmp_path: Path) -> None:
    play = stage(tmp_path, SPLIT)
    await play.world.bring_up()
    for _ in range(2):
        play.ask(20)
        play.step()
    (worker, command), *others = play.told
    assert command == Command(op="role", role=Role.PREFILL)
    assert worker.startswith("decode-")
    assert others == []
    assert [each["text"] for each in play.lines()] == [play.planning.last]
    assert play.planning.counts == {"flip": 1}
    info = play.world.roster.get(worker)
    assert info is not None
    flipped = msgspec.structs.replace(info, role=Role.PREFILL)
    play.world.roster.hear(Announcement(worker=worker, info=flipped), play.world.roster.dask_address(worker) or "")
    play.end_all()
    requests = [RouteRequest(request_id=RequestId(n), block_hashes=[], num_tokens=300, max_tokens=9) for n in "ab"]
    assigned = [play.world.router.assign(request, play.world.now) for request in requests]
    assert {each.prefill for each in assigned} >= {worker}, "the idle one of two is next"
    assert worker not in {each.decode for each in assigned}
    assert len(play.world.cluster.alive) == 3, "nothing was started or ended"


async def test_a_preview_is_told_and_nothing_is_done(tmp_path: Path) -> None:
    play = stage(tmp_path, SPLIT, enabled=False, max_workers=8)
    await play.world.bring_up()
    for _ in range(3):
        play.ask(20)
        play.step()
    report = play.planning.report()
    assert not report.is_enabled
    assert report.lines
    assert not any(line.is_applied for line in report.lines)
    assert (play.told, play.lines(), play.planning.last) == ([], [], "")
    assert play.world.reconciler.sizes == {"prefill": 1, "decode": 2}


async def test_more_workers_are_asked_for_and_given_back_pending_ones_first(tmp_path: Path) -> None:
    play = stage(tmp_path, {"workers": 1}, max_workers=3, shrink_s=60.0)
    ready = (await play.world.bring_up())[0]
    for _ in range(2):
        play.ask(40)
        play.step()
    assert play.world.reconciler.sizes == {"both": 3}
    await play.world.step()
    assert len(play.world.cluster.alive) == 3
    for _ in range(4):
        play.ask(40)
        play.step()
    assert play.planning.counts == {"grow": 1}, "jobs that wait are asked for already"
    play.end_all()
    for _ in range(30):
        play.step()
        play.world.report(ready, LoadReport())
    await play.world.step()
    assert play.world.reconciler.sizes == {"both": 1}
    assert play.world.cluster.alive == [ready]


async def test_it_sleeps_without_requests_and_one_that_comes_waits_for_the_worker_it_wakes(tmp_path: Path) -> None:
    play = stage(tmp_path, SPLIT, min_workers=0, idle_s=30.0)
    await play.world.bring_up()
    for _ in range(8):
        play.step()
    assert play.world.reconciler.sizes == {"prefill": 0, "decode": 0}
    await play.world.step()
    assert play.world.cluster.alive == []
    play.ask(1)
    play.step(0.1)
    assert play.world.reconciler.sizes == {"prefill": 1, "decode": 1}
    await play.world.bring_up()
    placed = play.world.router.place(play.world.now)
    assert [each.request_id for each in placed] == ["r1"]


async def test_a_new_head_keeps_as_many_workers_as_the_old_ones_planner_had_asked_for(tmp_path: Path) -> None:
    play = stage(tmp_path, {"workers": 1}, max_workers=4)
    play.world.reconciler.resize({"both": 3})
    await play.world.bring_up()
    heir = play.world.another_reconciler()
    heir.adopt(play.world.state.read_jobs())
    assert heir.sizes == {"both": 3}
    assert play.world.cluster.cancelled == []


async def test_a_disk_that_is_full_stops_no_planning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    play = stage(tmp_path, SPLIT)
    await play.world.bring_up()
    (play.world.state.path / "plan.jsonl").mkdir()
    for _ in range(2):
        play.ask(20)
        play.step()
    assert play.told
    assert "plan.jsonl cannot be written" in caplog.text


async def test_the_successor_of_a_worker_has_the_role_that_the_planner_gave_it(tmp_path: Path) -> None:
    play = stage(tmp_path, SPLIT)
    await play.world.bring_up()
    job = next(job for job, spec in play.world.cluster.specs.items() if spec.pool == "decode")
    play.world.run(job, walltime_s=100.0)
    info = play.world.info_of(job, WorkerState.READY)
    flipped = msgspec.structs.replace(info, role=Role.PREFILL)
    play.world.roster.hear(Announcement(worker=info.worker, info=flipped), f"dask-{job}")
    for _ in range(3):
        await play.world.step(20)
    successor = play.world.cluster.specs[play.world.successor_of(job)]
    assert successor.worker != info.worker
    assert (successor.pool, successor.role) == ("decode", Role.PREFILL)
