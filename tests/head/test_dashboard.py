"""The dashboard's figures show what the head knows, as text and never as markup. In a browser: tests/system."""

from __future__ import annotations

from math import isnan

from hpcserve.head.dashboard_figures import Figures
from hpcserve.observability.history import History
from hpcserve.types import LoadReport, Phase, Role, Status, Traffic, WorkerId, WorkerInfo, WorkerState


def status(*workers: WorkerInfo, **loads: LoadReport) -> Status:
    return Status(
        name="t", phase=Phase.SERVING, model="m", mode="aggregated", policy="kv", cluster="local",
        wanted={"both": 2}, workers=workers, load={WorkerId(name): load for name, load in loads.items()},
    )  # fmt: skip


def worker(name: str, state: WorkerState = WorkerState.READY, host: str | None = None) -> WorkerInfo:
    return WorkerInfo(worker=WorkerId(name), pool="both", role=Role.BOTH, state=state, host=host)


def test_workers_are_counted_by_pool_and_state_and_those_alive_have_a_bar() -> None:
    figures = Figures()
    figures.show_workers(
        status(worker("a"), worker("b", WorkerState.FAILED), a=LoadReport(kv_usage=0.25, num_running=7))
    )
    assert {name: counts for name, counts in figures._pools.data.items() if counts == [1]} == {
        "ready": [1],
        "failed": [1],
    }
    assert dict(figures._workers.data) == {"worker": ["a"], "kv_usage": [0.25]}
    assert "<td>7</td>" in figures._table.text


def test_what_workers_say_of_themselves_is_text() -> None:
    figures = Figures()
    figures.show_workers(status(worker("a", host="<script>alert(1)</script>")))
    assert "<script>" not in figures._table.text
    assert "&lt;script&gt;" in figures._table.text


def test_points_are_added_to_those_before_and_bounded() -> None:
    figures, history = Figures(), History(1000)
    for second in range(1, 701):
        history.take(status(), Traffic(), float(second))
    figures.add_points(list(history.points)[:10])
    assert figures.newest == 10.0
    figures.add_points(list(history.points)[10:])
    assert figures._points.data["at"][0] == 101_000.0
    assert figures._points.data["at"][-1] == 700_000.0
    assert isnan(figures._points.data["ttft_p50_ms"][0])
