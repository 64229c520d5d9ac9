"""configs/grafana-dashboard.json, against all metrics that there are."""

from __future__ import annotations

import copy
from itertools import combinations

import pytest

from hpcserve.observability.metrics import ServiceMetrics
from hpcserve.observability.tenant_metrics import TenantCounts
from hpcserve.types import (
    EngineInfo,
    LoadReport,
    Phase,
    Role,
    Status,
    WorkDone,
    WorkerId,
    WorkerInfo,
    WorkerState,
)
from tests.grafana import Exported, dashboard, exported, expressions, panels, variables_in, wrong_names
from tests.promql import names_in

WORKER = WorkerId("decode-0-a")
BUILT_IN = {"__rate_interval"}


def full_status() -> Status:
    engine = EngineInfo(
        engine="mock", model="m", block_size=32, num_kv_blocks=100, max_model_len=1000, kv_transport="nixl"
    )
    info = WorkerInfo(
        worker=WORKER, pool="decode", role=Role.DECODE, state=WorkerState.READY, engine=engine, ends_at=2e9, host="n1",
        job_id="17",
    )  # fmt: skip
    load = LoadReport(
        num_running=1, prefill_tokens_per_s=1.0, decode_tokens_per_s=1.0, pull_tokens_per_s=1.0, pull_latency_ms=1.0,
        work=WorkDone(prefill_s=1.0),
    )  # fmt: skip
    return Status(
        name="t", phase=Phase.SERVING, model="m", mode="disaggregated", policy="kv", cluster="slurm",
        wanted={"decode": 1}, workers=(info,), load={WORKER: load},
    )  # fmt: skip


@pytest.fixture(scope="module")
def known() -> Exported:
    metrics = ServiceMetrics(full_status)
    metrics.requests["/v1/completions", 200] += 1
    metrics.tenants["alice"] = TenantCounts(requests=1)
    return exported(metrics.render().decode())


def test_every_metric_and_label_that_it_names_is_exported(known):
    assert wrong_names(dashboard(), known) == []


def test_every_kind_of_metric_is_shown(known):
    shown = {metric for _, expression in expressions(dashboard()) for metric in names_in(expression).metrics}
    hidden = {name for name in known if name.startswith("hpcserve_") and not name.endswith(("_sum", "_count"))} - shown
    assert hidden == {"hpcserve_build_info", "hpcserve_start_time_seconds", "hpcserve_worker_kv_cache_blocks"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("hpcserve_queue_seconds_bucket", "hpcserve_queue_bucket"),
        ("hpcserve_queue_seconds_bucket", "hpcserve_queue_seconds"),
        ("by (route)", "by (path)"),
        ('status=~"5.."', 'code=~"5.."'),
        ("on (worker)", "on (host_name)"),
    ],
)
def test_a_wrong_name_is_noticed(known, before, after):
    wrong = copy.deepcopy(dashboard())
    targets = [target for panel in panels(wrong) for target in panel.get("targets", [])]
    (target, *_) = [each for each in targets if before in each["expr"]]
    target["expr"] = target["expr"].replace(before, after)
    assert len(wrong_names(wrong, known)) == 1


@pytest.mark.parametrize("expression", ["rate(x[5m]", "sum(rte(x[5m]))", "sum by (a) (x{b='c'})", "vector(0)", "x)"])
def test_an_expression_that_is_none_is_noticed(expression):
    with pytest.raises(ValueError):
        names_in(expression)


def test_what_an_expression_names_is_found():
    names = names_in('sum by (a, le) (rate(x_bucket{b=~"1|}", c!=""}[5m])) / on (d) group_left (e) max(y) or vector(0)')
    assert names.metrics == {"x_bucket": {"b", "c"}, "y": frozenset()}
    assert names.grouped_by == {"a", "le", "d", "e"}


def test_every_variable_that_is_used_is_defined():
    shown = dashboard()
    defined = {variable["name"] for variable in shown["templating"]["list"]}
    used = {name for _, expression in expressions(shown) for name in variables_in(expression)}
    assert used - BUILT_IN <= defined
    assert defined - {"datasource"} <= used


def test_everything_is_asked_of_the_data_source_that_was_chosen():
    shown = dashboard()
    sources = [
        each["datasource"]
        for panel in panels(shown)
        for each in (panel, *panel.get("targets", []))
        if panel["type"] != "row"
    ]
    sources += [each["datasource"] for each in shown["templating"]["list"] if each["type"] == "query"]
    assert sources
    assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)
    assert shown["templating"]["list"][0]["type"] == "datasource"


def test_ids_and_the_letters_of_queries_are_unique():
    ids = [panel["id"] for panel in panels(dashboard())]
    assert len(set(ids)) == len(ids)
    for panel in panels(dashboard()):
        letters = [target["refId"] for target in panel.get("targets", [])]
        assert len(set(letters)) == len(letters)


def test_panels_do_not_overlap_and_stay_within_the_page():
    places = [panel["gridPos"] for panel in dashboard()["panels"]]
    for place in places:
        assert 0 <= place["x"] < place["x"] + place["w"] <= 24
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above, f"{one} {other}"


def test_it_has_the_rows_that_the_docs_name_and_every_panel_says_what_it_shows():
    rows = [panel["title"] for panel in panels(dashboard()) if panel["type"] == "row"]
    assert rows == ["Requests", "Latency", "Tokens", "Workers", "KV cache", "Tenants", "Frontend"]
    assert [
        panel["title"] for panel in panels(dashboard()) if panel["type"] != "row" and not panel["description"]
    ] == []
