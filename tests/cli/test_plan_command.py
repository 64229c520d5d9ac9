"""`hpcserve plan`: what it shows of a report."""

from __future__ import annotations

import json

from fake_serve import SERVING, FakeServe

from hpcserve.config import Config
from hpcserve.planner import Flip, Observation, Plan, PlanLine, PlanReport, Sight
from hpcserve.planner.decisions import Need
from hpcserve.state import StateDir
from hpcserve.types import Role, WorkerId

FLIP = Flip(worker=WorkerId("decode-1"), role=Role.PREFILL, reason="prompts need 2 workers and have 1")
SEEN = Observation(
    now=1000.0,
    interval_s=5.0,
    sizes={"prefill": 1, "decode": 2},
    workers=(
        Sight(worker=WorkerId("prefill-0"), pool="prefill", role=Role.PREFILL, state="ready", queued_ms=1840.0),
        Sight(worker=WorkerId("decode-1"), pool="decode", role=Role.DECODE, state="ready", kv_usage=0.31),
        Sight(worker=WorkerId("decode-2"), pool="decode", role=Role.DECODE, state="coming"),
    ),
    num_arrived=7,
    num_waiting=3,
    ttft_p90_ms=2301.2,
    wait_s=42.0,
)
PLAN = Plan(need=Need(prefill=2, decode=1, total=3, offered=1.2, kv=0.31), wishes=(FLIP.text,))
LINE = PlanLine(at=900.0, decision=FLIP, text=FLIP.text, is_applied=False)


class Planned(FakeServe):
    report = PlanReport(is_enabled=False, observation=SEEN, plan=PLAN, lines=(LINE,))

    async def fetch_plan(self, state: StateDir) -> PlanReport:
        return self.report


def planned() -> Planned:
    fake = Planned([[SERVING]], last=SERVING)
    fake.start(Config.model_validate({"engine": {"kind": "mock"}}))
    return fake


def test_it_shows_what_is_seen_needed_and_would_be_done(run) -> None:
    out = run("plan", serve=planned()).stdout
    assert "the planner is off: this is a preview (planner.enabled)" in out
    rows = [line.split() for line in out.splitlines()]
    assert ["prefill-0", "prefill", "ready", "0", "1.8", "s", "0%"] in rows
    assert ["decode-2", "decode", "coming", "0", "0.0", "s", "0%"] in rows
    for text in (
        "wanted: 1 prefill + 2 decode; one takes 42 s to come",
        "TTFT p90 2301 ms, ITL p90 -",
        "needed: 3 workers; 2 for prompts (they keep 1.2 computing), 1 for decoding (it fills 0.3 caches)",
        f"now: {FLIP.text}",
        "decisions that it would have made:",
    ):
        assert text in out


def test_before_the_first_interval_it_says_so(run) -> None:
    fake = planned()
    fake.report = PlanReport(is_enabled=True, observation=None, plan=None, lines=())
    out = run("plan", serve=fake).stdout
    assert out == "the planner is on\nit has not looked yet: the first interval is not over\n"


def test_as_json_it_is_the_report(run) -> None:
    told = json.loads(run("plan", "--json", serve=planned()).stdout)
    assert told["lines"][0]["decision"] == {
        "type": "flip",
        "worker": "decode-1",
        "role": "prefill",
        "reason": FLIP.reason,
    }
    assert told["observation"]["num_waiting"] == 3
