"""Replays in which the planner acts: who comes, who goes, and what it costs."""

from __future__ import annotations

import json
from dataclasses import replace as with_changes

import pytest
from click.testing import CliRunner

from hpcserve.cli import main
from hpcserve.config.planning_models import PlannerConfig
from hpcserve.engine.mock.scheduler import Limits
from hpcserve.simulate import Report, Scenario, TraceRequest, replay
from hpcserve.simulate.planned import replay_planned

LIMITS = Limits(num_blocks=2048, block_size=64, max_num_seqs=256, max_batched_tokens=8192)


def requests(rate: float, seconds: float, start: float = 0.0, num_prompt: int = 8192, num_output: int = 20):
    """Return equal requests that share nothing, at equal distances."""
    num_blocks = -(-num_prompt // 512)
    first = 1_000_000 * (1 + round(start))
    return [
        TraceRequest(
            arrives_at=start + each / rate,
            num_prompt=num_prompt,
            num_output=num_output,
            hash_ids=tuple(range(first + 100 * each, first + 100 * each + num_blocks)),
        )
        for each in range(int(rate * seconds))
    ]


def planned(prefill: int = 0, decode: int = 0, workers: int = 1, **fields: object) -> Scenario:
    names = {"start_s", "queue_s"}
    planner = {"ttft_ms": 1000.0, "itl_ms": 25.0} | {name: fields[name] for name in fields if name not in names}
    times = {name: fields[name] for name in fields if name in names}
    return Scenario(
        prefill=prefill,
        decode=decode,
        workers=workers,
        limits=LIMITS,
        planner=PlannerConfig(**planner),  # type: ignore[arg-type]
        slo_ttft_ms=1000.0,
        slo_itl_ms=25.0,
        **({"start_s": 10.0} | times),  # type: ignore[arg-type]
    )


def test_a_planner_that_may_do_nothing_changes_nothing() -> None:
    load = requests(4, 30)
    fixed = planned(workers=2)
    result = replay_planned(fixed, load)
    assert result.changes == []
    assert result.report == replay(fixed, load)


def test_roles_follow_a_load_that_shifts_from_prompts_to_answers() -> None:
    load = requests(13, 30) + requests(11, 40, start=30.0, num_prompt=512, num_output=1000)
    result = replay_planned(planned(1, 3, flip_pause_s=5.0), load)
    assert {change.kind for change in result.changes} == {"flip"}
    early = [change.text for change in result.changes if change.at_s < 30]
    late = [change.text for change in result.changes if change.at_s > 30]
    assert "becomes a prefill worker" in early[0]
    assert "becomes a decode worker" in late[0]
    fixed = replay(planned(1, 3), load)
    assert result.report.num_requests == fixed.num_requests == len(load)
    assert result.report.slo_attainment > 2 * fixed.slo_attainment
    assert result.report.worker_hours < 0.85 * fixed.worker_hours, "it is done sooner"


def test_a_step_of_the_load_costs_fewer_worker_hours_than_the_fleet_for_its_peak() -> None:
    load = requests(1, 100) + requests(9, 60, start=100.0) + requests(1, 140, start=160.0)
    result = replay_planned(planned(max_workers=6, min_workers=1, shrink_s=30.0), load)
    kinds = [change.kind for change in result.changes]
    assert kinds.index("grow") < kinds.index("shrink")
    assert result.most_workers >= 3
    fixed = (replay(planned(workers=num), load) for num in range(2, 7))
    peak = next(report for report in fixed if report.slo_attainment >= result.report.slo_attainment)
    assert result.report.worker_hours < 0.9 * peak.worker_hours
    assert (result.report.num_requests, result.report.num_rejected) == (len(load), 0)


def test_a_wait_in_the_queue_costs_time_but_no_worker_hours() -> None:
    load = requests(9, 60)
    soon = replay_planned(planned(max_workers=4), load)
    late = replay_planned(planned(max_workers=4, queue_s=40.0), load)
    assert soon.most_workers == late.most_workers == 4
    assert late.report.slo_attainment < soon.report.slo_attainment
    assert late.report.worker_hours < soon.report.worker_hours


def test_between_two_loads_there_are_no_workers_and_the_first_request_waits_for_one() -> None:
    load = [*requests(1, 30), *requests(1, 30, start=300.0)]
    result = replay_planned(planned(min_workers=0, idle_s=60.0), load)
    assert result.least_workers == 0
    report: Report = result.report
    assert report.num_requests == len(load)
    assert 8_000 < report.ttft_ms.p99 < 16_000, "about `start_s`"
    assert report.worker_hours * 3600 == pytest.approx(30 + 60 + 40, abs=20)


def test_the_same_scenario_gives_the_same_decisions() -> None:
    scenario, load = planned(1, 1, max_workers=4), requests(6, 30)
    assert replay_planned(scenario, load) == replay_planned(with_changes(scenario), load)


def test_the_command_tells_what_the_planner_did(excerpt) -> None:
    args = ["simulate", "--trace", str(excerpt), "--planner", "--prefill", "1", "--decode", "1", "--start-s", "5"]
    most = ["--set", "planner.max_workers=5"]
    told = json.loads(CliRunner().invoke(main, [*args, *most, "--json"]).output)
    assert told["most_workers"] > 2
    assert told["report"]["num_requests"] == 200
    assert 0 < told["report"]["slo_attainment"] < 1
    text = CliRunner().invoke(main, [*args, *most]).output
    assert told["changes"][0]["text"].split(":")[0] in text
    assert CliRunner().invoke(main, [*args, "--sweep"]).exit_code == 2
    assert CliRunner().invoke(main, [*args, "--set", "name=x"]).exit_code == 2
