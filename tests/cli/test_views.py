"""What is drawn on a terminal."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import msgspec
from fake_serve import PENDING, SERVING, make_status, make_worker
from rich.console import Console

from hpcserve.cli.banner import tunnel
from hpcserve.cli.describe import one_line, why_hopeless
from hpcserve.cli.live import LiveLine, LiveTable
from hpcserve.cli.status_page import status_list, status_page
from hpcserve.types import Phase, Status, WorkerState


def drawn(logs: Path, *statuses: Status) -> str:
    console = Console(file=StringIO(), width=110)
    view = LiveTable(logs, console)
    for status in statuses:
        view.update(status)
    console.print(view.render())
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def page(status: Status) -> str:
    console = Console(file=StringIO(), width=110)
    console.print(status_page(status))
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_before_the_head_answers_it_says_that_it_starts(tmp_path: Path) -> None:
    assert "starting the head" in drawn(tmp_path)


def test_the_table_has_a_row_a_worker_with_job_and_reason(tmp_path: Path) -> None:
    text = drawn(tmp_path, PENDING)
    assert "default: starting, 0 of 1 workers READY" in text
    (row,) = [line.split() for line in text.splitlines() if "both-0-a1" in line]
    assert row == ["both", "both-0-a1", "17", "pending", "(Resources)", "0", "s"]
    assert "warning: RDMA is not there" in text
    assert "READY" in drawn(tmp_path, PENDING, SERVING)


def test_the_table_ends_with_the_log_of_a_worker_that_failed(tmp_path: Path) -> None:
    (tmp_path / "both-0-a1.log").write_text("".join(f"[{number}] line\n" for number in range(20)))
    failed = make_worker("both-0-a1", WorkerState.FAILED, "exit code 1")
    text = drawn(tmp_path, PENDING, make_status(Phase.STARTING, failed))
    assert "failed (exit code 1)" in text
    assert "[19] line" in text
    assert "[11] line" not in text


def test_while_it_serves_failures_and_warnings_are_told_once() -> None:
    console = Console(file=StringIO(), width=110)
    view = LiveLine(console)
    lost = make_status(Phase.SERVING, make_worker("both-0-a1", WorkerState.FAILED, "node died"))
    for status in (lost, lost):
        view.update(status)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines == ["both-0-a1 failed (node died)", "warning: RDMA is not there: sockets are used"]
    console.print(view.render())
    assert "0 of 1 workers READY" in console.file.getvalue()  # type: ignore[attr-defined]


def test_one_line_counts_workers_and_requests() -> None:
    assert one_line(SERVING) == "default: serving, 1 of 1 workers READY, 2 running, 1 waiting"


def test_those_that_wait_for_a_worker_are_told_of() -> None:
    crowded = msgspec.structs.replace(SERVING, num_waiting=40)
    assert one_line(crowded).endswith("2 running, 41 waiting")
    assert "40 for a worker" in page(crowded)
    assert "for a worker" not in page(SERVING)


def test_a_start_is_hopeless_when_all_that_is_wanted_failed() -> None:
    failed = make_worker("both-0-a1", WorkerState.FAILED, "no such model")
    assert why_hopeless(PENDING) is None
    assert why_hopeless(make_status(Phase.STARTING)) is None
    assert why_hopeless(make_status(Phase.STARTING, failed, make_worker("b", WorkerState.PENDING))) is None
    assert why_hopeless(make_status(Phase.STARTING, failed)) == "every worker failed; both-0-a1: no such model"
    assert why_hopeless(make_status(Phase.FAILED, detail="port taken")) == "port taken"


def test_the_tunnel_leaves_out_a_dashboard_that_is_off() -> None:
    import msgspec

    status = msgspec.structs.replace(SERVING, dashboard=None, endpoint="http://login2:8000/v1")
    assert tunnel(status).startswith("ssh -N -L 8000:login2:8000 ")


def test_a_list_has_a_row_a_deployment() -> None:
    console = Console(file=StringIO(), width=100)
    console.print(status_list([SERVING, PENDING]))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert [line.split()[1] for line in lines] == ["phase", "serving", "starting"]
