"""What the routing benchmarks are made of: a trace made up, targets that are missed, and Dynamo's numbers, kept."""

import json
from itertools import pairwise
from statistics import mean, stdev

import pytest

from hpcserve.simulate import load_trace
from tests.benchmarks import policies_against_dynamo
from tests.benchmarks.dynamo_replay import Case, Slo
from tests.benchmarks.policies_against_dynamo import COLUMNS, GOALS, Kept, find_missed, median_of
from tests.benchmarks.synthetic_trace import requests

EVEN = dict.fromkeys(COLUMNS, 100.0)


@pytest.fixture(scope="module")
def made_up():
    return list(requests(3000, sessions_per_s=1.2, seed=0))


def test_a_made_up_trace_is_one_that_the_simulator_reads(made_up, tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps(request) + "\n" for request in made_up))
    assert [request.num_prompt for request in load_trace(path)] == [request["input_length"] for request in made_up]


def test_the_same_seed_makes_up_the_same_trace(made_up):
    assert list(requests(3000, sessions_per_s=1.2, seed=0)) == made_up
    assert list(requests(3000, sessions_per_s=1.2, seed=1)) != made_up


def test_arrivals_are_not_bursty_and_prompts_share_beginnings(made_up):
    times = [request["timestamp"] for request in made_up]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert min(gaps) >= 0
    assert 0.8 < stdev(gaps) / mean(gaps) < 1.2, "1 for Poisson arrivals"
    seen, num_known = set(), 0
    for request in made_up:
        ids = request["hash_ids"]
        known = [block in seen for block in ids]
        assert known == sorted(known, reverse=True), "what is shared is a prefix"
        num_known += sum(known)
        seen.update(ids)
    assert num_known / sum(len(request["hash_ids"]) for request in made_up) > 0.5


def test_equal_numbers_miss_where_better_is_wanted_only():
    assert set(find_missed(EVEN, EVEN, {}, is_strict=True)) == {"TTFT mean", "p99", "e2e mean", "goodput"}
    assert set(find_missed(EVEN, EVEN, {}, is_strict=False)) == set()


@pytest.mark.parametrize(("name", "value"), [("TTFT mean", 101), ("p99", 101), ("e2e mean", 101), ("goodput", 99)])
def test_what_is_worse_than_dynamos_is_missed(name, value):
    assert list(find_missed(EVEN | {name: value}, EVEN, {}, is_strict=False)) == [name]


def test_itl_may_be_a_little_longer():
    assert list(find_missed(EVEN | {"ITL p50": 103.0}, EVEN, {}, is_strict=False)) == []
    assert list(find_missed(EVEN | {"ITL p50": 103.1}, EVEN, {}, is_strict=False)) == ["ITL p50"]


def test_goals_take_the_place_of_the_comparison():
    assert list(find_missed(EVEN | GOALS, EVEN, GOALS, is_strict=True)) == []
    assert list(find_missed(EVEN | GOALS | {"hits %": 25.9}, EVEN, GOALS, is_strict=True)) == ["hits %"]


def test_dynamo_runs_what_is_not_kept_yet_and_nothing_else(tmp_path, monkeypatch):
    trace, path = tmp_path / "trace.jsonl", tmp_path / "kept.json"
    trace.write_text("{}")
    ran = []

    def run(trace, python, num_requests, cases, slo):
        for case in cases:
            ran.append(case)
            yield {column.dynamo: float(len(ran)) for column in COLUMNS.values()}

    monkeypatch.setattr(policies_against_dynamo, "run_dynamo", run)
    varying, steady = Case("kv_router", 1, 4096), Case("round_robin", 1, 4096)
    for wanted in ([varying, steady], [varying] * 3 + [steady]):
        Kept(path, trace, 1, Slo(1000, 25)).add(wanted, trace, path, None)
    assert ran == [varying, steady, varying, varying]
    kept = Kept(path, trace, 1, Slo(1000, 25))
    assert median_of(kept.rows(varying))["TTFT mean"] == 3.0, "of 1, 3 and 4"
    assert Kept(path, trace, 1, Slo(500, 25)).rows(varying) == []
