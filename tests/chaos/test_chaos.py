"""One short seed of chaos on a real Slurm, and what the harness itself promises."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos import invariants
from tests.chaos.__main__ import main
from tests.chaos.cases import Case, Expected, differences, draw_cases, mock_text
from tests.chaos.daemons import CannotBoot
from tests.chaos.faults.kinds import FAULTS
from tests.chaos.plan import draw_plan
from tests.chaos.run import run_plan
from tests.chaos.world import Excuses

_SHORT = (
    "kill-agent", "stop-agent", "cancel-job", "kill-frontend", "kill-head", "stop-slurmctld",
    "cut-connection", "swallow-connection", "fill-disk",
)  # fmt: skip


@pytest.mark.real
@pytest.mark.slurm
@pytest.mark.timeout(400)
def test_a_short_seed_leaves_every_request_answered_and_nothing_behind(tmp_path: Path) -> None:
    faults = {name: FAULTS[name] for name in _SHORT}
    faults["swallow-connection"] = replace(faults["swallow-connection"], hold_s=(0.5, 12.0))  # the run is short
    plan = draw_plan(
        17, 24.0, list(faults.values()), mean_gap_s=1.6, num_clients=6, beside="run", walltimes=[None], num_frontends=2
    )
    try:
        report = asyncio.run(run_plan(plan, faults, "pytest tests/chaos", tmp_path / "kept"))
    except CannotBoot as err:
        pytest.skip(str(err))
    print(report.text())
    assert report.violations == []
    assert {each.fault for each in report.happened if each.what} == set(_SHORT), "every kind has had its turn"
    assert len(report.outcomes) >= plan.scenario.num_clients
    assert (tmp_path / "kept" / "report.json").exists()


def test_a_plan_follows_from_its_seed() -> None:
    kinds = list(FAULTS.values())
    assert draw_plan(7, 600, kinds) == draw_plan(7, 600, kinds)
    assert draw_plan(7, 600, kinds).events != draw_plan(8, 600, kinds).events
    longest = draw_plan(7, 3600, kinds)
    assert {event.fault for event in longest.events} == set(FAULTS)
    assert all(event.at_s < 3600 for event in longest.events)


def test_a_plan_is_printed_without_being_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "3", "--minutes", "2", "--dry-run"]) == 0
    assert "seed 3, 120 s of load" in capsys.readouterr().out


def test_a_changed_a_doubled_and_a_missing_token_are_each_seen() -> None:
    text = mock_text(20, 65, 30)
    case = Case("c", "completions", {}, Expected((text,), "length", 20, 30))
    usage = {"prompt_tokens": 20, "completion_tokens": 30}
    assert differences(case, [text], ["length"], usage) == ""
    changed = text[:9] + ("b" if text[9] != "b" else "c") + text[10:]
    doubled = text[:9] + text[8:]
    for wrong in (changed, doubled, text[:-1]):
        assert "choice 0 differs" in differences(case, [wrong], ["length"], usage)
    assert "usage" in differences(case, [text], ["length"], usage | {"completion_tokens": 31})
    assert "ended with" in differences(case, [text], ["stop"], usage)
    assert "0 choices for 1" in differences(case, [], [], usage)


def test_no_two_requests_have_the_same_answer() -> None:
    texts = [case.expected.texts[0] for case in draw_cases(5, "mock", is_mock=True) if case.expected is not None]
    assert len({text[:12] for text in texts}) == len(texts) == 32


def test_only_dasks_tracebacks_about_connections_are_allowed(tmp_path: Path) -> None:
    place = '  File "{}", line 1, in read\n    read()\n'
    traceback = "2026 ERROR distributed: oh\nTraceback (most recent call last):\n" + place + "{}\n2026 INFO x: y\n"
    closed = "distributed.comm.core.CommClosedError: in <TLS>"
    (tmp_path / "head.log").write_text(traceback.format("/site-packages/distributed/comm/tcp.py", closed))
    assert invariants.quiet_logs(tmp_path) == []
    chain = traceback.format("/site-packages/tornado/tcpclient.py", "TimeoutError").replace("2026 INFO x: y\n", "\n")
    chain += "During handling of the above exception, another exception occurred:\n\n"
    (tmp_path / "head.log").write_text(chain + traceback.partition("oh\n")[2].format("/distributed/core.py", closed))
    assert invariants.quiet_logs(tmp_path) == []
    (tmp_path / "a.log").write_text(traceback.format("/hpcserve/head/plugin.py", closed))
    (tmp_path / "b.log").write_text(traceback.format("/site-packages/distributed/comm/tcp.py", "KeyError: 'x'"))
    assert [line.split(":")[0] for line in invariants.quiet_logs(tmp_path)] == [
        "traceback in a.log",
        "traceback in b.log",
    ]


def test_a_connection_may_end_only_around_the_death_of_a_frontend() -> None:
    excuses = Excuses(deaths=[100.0])
    assert excuses.allow(101.0)
    assert not excuses.allow(99.0)
    assert not excuses.allow(120.0)
    excuses.head_gone[95.0] = 115.0  # nobody could start another frontend before
    assert excuses.allow(120.0)
    assert not excuses.allow(140.0)
    excuses.head_gone[95.0] = math.inf
    assert excuses.allow(1000.0)
